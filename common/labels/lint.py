"""Labels that a metric cannot tell apart, or only just. Errors stop a run; warnings are shown with a few cases."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from common.errors import DataError
from common.labels.answers import Aliases, Mode, normalise, normalise_leniently
from common.labels.candidates import breaks_list

_NAMED = 3  # cases named in a line; the rest are counted
_LONG = 80  # characters
_RENAME = "rename one of each, or offer only one of them in a list"
_LAST_NUMBER = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\W*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind of fault in labels, and every case of it."""

    what: str
    cases: tuple[str, ...]
    remedy: str = ""
    stops: bool = False  # an error; else a warning

    def __str__(self) -> str:
        more = [f"and {len(self.cases) - _NAMED} more"] if len(self.cases) > _NAMED else []
        return f"{self.what} ({len(self.cases)}): {'; '.join([*self.cases[:_NAMED], *more])}"


def lint(labels: Iterable[str], lists: Iterable[Sequence[str]], *, mode: Mode) -> list[Finding]:
    """Return what is wrong or doubtful with labels and with the lists of questions; errors first.

    An error is what the strict metric of `mode` would score wrongly: two names of one list that are equal to it.
    """
    lists = list(lists)
    names = sorted({*labels, *(name for offered in lists for name in offered)})
    inside = list(_inside(names))
    findings = [
        Finding(
            what=f"labels of one list that are the same answer in mode {mode}",
            cases=_same_answer(lists, mode),
            remedy=_RENAME if mode == "no_think" else f"{_RENAME}; mode no_think tells cases apart",
            stops=True,
        ),
        Finding(what="labels listed twice by a question", cases=_twice(lists)),
        Finding(what="labels that differ only in case, underscores, spaces or Unicode form", cases=_look_alike(names)),
        Finding(
            what="labels inside others as words, which the lenient metric takes for right",
            cases=tuple(f"{part!r} in {whole!r}" for part, whole, as_word in inside if as_word),
        ),
        Finding(
            what="labels inside others as letters, which the lenient metric takes for right",
            cases=tuple(f"{part!r} in {whole!r}" for part, whole, as_word in inside if not as_word),
        ),
        Finding(what="labels that differ only in digits", cases=_groups(names, _without_digits)),
        Finding(
            what="labels that end in the same number, which a maths parser takes for equal",
            cases=_groups(names, _last_number),
        ),
        Finding(what=f"labels over {_LONG} characters", cases=tuple(repr(name) for name in names if len(name) > _LONG)),
    ]
    return [finding for finding in findings if finding.cases]


def unlistable(labels: Iterable[str]) -> Finding:
    """Return the labels that no list can hold, as an error for a data set that is being written."""
    return Finding(
        what="labels with a comma, a bracket or space around them, which no list can hold",
        cases=tuple(repr(label) for label in labels if breaks_list(label)),
        remedy="rename these classes",
        stops=True,
    )


def unanswerable(labels: Iterable[str], aliases: Aliases, count: Callable[[str], int], limit: int) -> Finding:
    """Return the labels that do not fit into `limit` tokens of a completion, not even by their shortest alias."""
    sizes = {label: _count_shortest((label, *aliases.get(label, ())), count) for label in labels}
    return Finding(
        what=f"labels of more tokens than the {limit} of rollout.max_completion_tokens",
        cases=tuple(f"{label!r} has {size}" for label, size in sorted(sizes.items()) if size > limit),
        remedy="raise rollout.max_completion_tokens",
        stops=True,
    )


def unsayable(labels: Iterable[str], aliases: Aliases, count: Callable[[str], int]) -> Finding:
    """Return the labels that no answer can be, nor any alias of theirs: the model has no tokens for them."""
    return Finding(
        what="labels that the model's tokenizer has no tokens for",
        cases=tuple(repr(label) for label in labels if not _count_shortest((label, *aliases.get(label, ())), count)),
        remedy="use a model whose tokenizer knows the script of the labels, or give them aliases that it knows",
        stops=True,
    )


def _count_shortest(names: Iterable[str], count: Callable[[str], int]) -> int:
    """Return the tokens of the shortest name that has any; 0 where none has."""
    return min(filter(None, map(count, names)), default=0)


def settle(name: str, findings: Iterable[Finding], *, say: Callable[[str], None]) -> None:
    """Say the warnings, one a line. Raises one DataError with all the errors."""
    findings = list(findings)
    for finding in findings:
        if not finding.stops:
            say(f"warning: {finding}")
    if stops := [finding for finding in findings if finding.stops and finding.cases]:
        raise DataError(
            f"labels of {name} cannot be used",
            got="; ".join(map(str, stops)),
            remedy="; ".join(dict.fromkeys(finding.remedy for finding in stops)),
        )


def _same_answer(lists: Iterable[Sequence[str]], mode: Mode) -> tuple[str, ...]:
    key = cache(lambda name: normalise(name, mode))  # lists repeat a few names many times
    clashing: dict[str, None] = {}
    for offered in map(dict.fromkeys, lists):
        if len({key(name) for name in offered}) < len(offered):
            clashing |= dict.fromkeys(_groups(offered, key))
    return tuple(clashing)


def _twice(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    again = {name for offered in lists if len(set(offered)) < len(offered) for name in _find_repeated(offered)}
    return tuple(map(repr, sorted(again)))


def _find_repeated(names: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _look_alike(names: Sequence[str]) -> tuple[str, ...]:
    return _groups(names, _fold)


def _fold(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).replace("_", " ").casefold()
    visible = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", visible).split())


def _without_digits(name: str) -> str | None:
    return re.sub(r"\d+", "#", name) if re.search(r"\d", name) else None


def _last_number(name: str) -> float | None:
    found = _LAST_NUMBER.search(name)
    return float(found[1]) if found else None


def _groups(names: Iterable[str], key: Callable[[str], object]) -> tuple[str, ...]:
    """Return the names that share a key, one case a key: "'a' / 'b'". Names with key None are left out."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    groups.pop(None, None)
    return tuple(_case(group) for group in groups.values() if len(group) > 1)


def _case(group: Sequence[str]) -> str:
    more = f" and {len(group) - _NAMED} like them" if len(group) > _NAMED else ""
    return " / ".join(map(repr, group[:_NAMED])) + more


def _inside(names: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield (part, whole, as a word) for labels that the lenient metric finds in others: ("ant", "elephant", False).

    All names are searched as one text. A thousand of them take milliseconds; pair by pair they would take a second.
    """
    by_text = {text: name for name in names if (text := normalise_leniently(name))}
    texts = list(by_text)
    joined = "\0".join(texts)
    starts = list(accumulate((len(text) + 1 for text in texts[:-1]), initial=0))
    for part, name in by_text.items():
        at = joined.find(part)
        while at >= 0:
            number = bisect_right(starts, at) - 1
            whole = texts[number]
            if whole != part:
                yield name, by_text[whole], _is_word(part, whole)
            at = joined.find(part, starts[number] + len(whole))  # at most one find in each name


def _is_word(part: str, whole: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", whole) is not None
