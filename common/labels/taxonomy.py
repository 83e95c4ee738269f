"""A tree of classes, from `data.taxonomy`, and how near two of them are in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile

from common.errors import DataError

Taxonomy = Mapping[str, str]  # class -> the class above it; one that is only ever above others is a root


def similarity(taxonomy: Taxonomy, one: str, other: str) -> float:
    """Return 2 x the depth of the lowest class above both, over the sum of their depths; 0 where there is none.

    Roots have depth 1. With cat and tiger below feline, below mammal, below animal, their depths are 4 and feline's
    is 3. So cat and tiger give 2 x 3 / 8 = 0.75. A class and itself give 1. Source: Wu and Palmer, "Verb semantics and
    lexical selection" (1994).
    """
    first, second = _find_path(taxonomy, one), _find_path(taxonomy, other)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    return 2 * shared / (len(first) + len(second))


def leaves(taxonomy: Taxonomy) -> list[str]:
    """Return the classes with none below them."""
    above = set(taxonomy.values())
    return [name for name in taxonomy if name not in above]


def check_taxonomy(taxonomy: Taxonomy, labels: Iterable[str]) -> None:
    """Raise DataError for a tree that turns in a circle, has a blank name, or does not hold one of `labels`."""
    blank = [f"{name!r}: {above!r}" for name, above in taxonomy.items() if not (name.strip() and above.strip())]
    faults = [
        *(f"{fault} has a blank name" for fault in blank),
        *(f"{name!r} is above itself" for name in taxonomy if _turns(taxonomy, name)),
        *(f"label {label!r} is not in it" for label in dict.fromkeys(labels) if label not in taxonomy),
    ]
    if faults:
        raise DataError(
            f"data.taxonomy cannot be used: {len(faults)} faults",
            got="; ".join(faults[:5]),
            remedy="give every label the class above it, as in {cat: mammal, dog: mammal, mammal: animal}",
        )


def _find_path(taxonomy: Taxonomy, name: str) -> list[str]:
    """Return the classes from the root down to `name`."""
    path = [name]
    while (above := taxonomy.get(path[-1])) is not None:
        path.append(above)
    return path[::-1]


def _turns(taxonomy: Taxonomy, name: str) -> bool:
    """Whether the classes above `name` lead back to it."""
    at = taxonomy.get(name)
    for _ in taxonomy:
        if at is None or at == name:
            break
        at = taxonomy.get(at)
    return at == name
