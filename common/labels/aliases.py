"""Other names of labels, from `data.aliases`: checked so that no name stands for two labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.errors import DataError
from common.labels.answers import Aliases, same_name


def check_aliases(aliases: Aliases, labels: Iterable[str]) -> list[str]:
    """Return the labels with aliases that `labels` does not hold, for the caller to show.

    Raises DataError for an alias that is blank, names another label, or stands for two.
    """
    known = list(dict.fromkeys([*labels, *aliases]))
    if clashes := list(_find_clashes(aliases, known)):
        raise DataError(
            f"{len(clashes)} of data.aliases cannot be used",
            got="; ".join(clashes[:5]),
            remedy="leave out names that could mean another label: a right answer must be right for one label only",
        )
    return [label for label in aliases if label not in set(labels)]


def _find_clashes(aliases: Aliases, labels: Iterable[str]) -> Iterator[str]:
    """Yield a line for each alias that is blank or also names another label."""
    owners = [(name, label) for label in labels for name in (label, *aliases.get(label, ()))]
    for label, names in aliases.items():
        for name in names:
            if not name.strip():
                yield f"{label!r} has a blank alias"
            other = next((owner for known, owner in owners if owner != label and same_name(known, name)), None)
            if other is not None:
                yield f"{name!r} of {label!r} also names {other!r}"
