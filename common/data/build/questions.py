"""The candidate policies: which classes a question lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.config.foreign_text import parse_json, refuse_pipe
from common.data.table import reading_data
from common.errors import DataError

Policy = Literal["cls_rl", "all", "hard"]
Confusions = Counter[frozenset[str]]  # how often two labels were taken for each other
Choose = Callable[[str, Sequence[str], np.random.Generator], Sequence[str]]
_FEW, _SHARE, _MOST = 30, 0.4, 100


def list_length(classes: int) -> int:
    """Return how many of `classes` a question lists by CLS-RL's rule.

    It is 0.4 of the classes, at most 100; all of them where that is under 30: 397 -> 100, 100 -> 40, 47 -> 47.
    """
    length = int(_SHARE * classes)
    return classes if length < _FEW else min(_MOST, length)


def chooser(policy: Policy, *, confusions: Confusions | None, length: int | None) -> Choose:
    """Return the function (label, labels, draw) -> the labels a row offers, its own among them.

    A list of all labels keeps their order, and is `labels` itself.

    Args:
        confusions: for the `hard` policy.
        length: of a list of the `hard` policy; by default as long as CLS-RL's, where that is shorter than the whole.
    """
    if policy == "all":
        return lambda label, labels, draw: labels
    if policy == "cls_rl":
        return _Draw()
    return partial(_hard, confusions=confusions or Counter(), length=length)


class _Draw:
    """CLS-RL's rule: the label and others drawn at random, or all labels where they are few."""

    def __init__(self) -> None:
        self._labels: Sequence[str] = ()
        self._places: dict[str, int] = {}  # in `_labels`: a list of 10,000 is not searched for every row

    def __call__(self, label: str, labels: Sequence[str], draw: np.random.Generator) -> Sequence[str]:
        count = list_length(len(labels))
        if count >= len(labels):
            return labels
        if labels is not self._labels:
            self._labels, self._places = labels, {name: place for place, name in enumerate(labels)}
        own = self._places.get(label, len(labels))
        others = draw.permutation(len(labels) - (own < len(labels)))[: count - 1].tolist()
        return _mix([label, *(labels[place + (place >= own)] for place in others)], draw)


def _hard(
    label: str, labels: Sequence[str], draw: np.random.Generator, *, confusions: Confusions, length: int | None
) -> list[str]:
    """Return the label and those most often confused with it; chance decides among equals."""
    count = min(len(labels), length or min(_MOST, max(2, int(_SHARE * len(labels)))))
    others = [labels[row] for row in draw.permutation(len(labels)).tolist() if labels[row] != label]
    others.sort(key=lambda other: -confusions[frozenset((label, other))])
    return _mix([label, *others[: count - 1]], draw)


def _mix(labels: Sequence[str], draw: np.random.Generator) -> list[str]:
    return [labels[row] for row in draw.permutation(len(labels)).tolist()]


def read_confusions(file: Path, labels: Sequence[str]) -> Confusions:
    """Count the confusions among `labels` in an evaluation's `confusion`, [[label, answer, count], ...].

    Args:
        file: JSON of one evaluation or of the triples alone, or an evaluations.jsonl, of which the last step counts.

    Raises DataError when it holds none of these, or no two of `labels`.
    """
    with reading_data(file, remedy="give the JSON of an evaluation, or its evaluations.jsonl"):
        triples = _triples(file)
        counts: Confusions = Counter()
        for label, answer, count in triples:
            if label != answer and {label, answer} <= set(labels):
                counts[frozenset((label, answer))] += int(count)
    if not counts:
        raise DataError(
            f"{file} names no two labels of this set that were taken for each other",
            got=f"{len(triples)} entries, the first {triples[0] if triples else 'missing'}",
            remedy="evaluate on this set first, or choose another --candidates",
        )
    return counts


def _triples(file: Path) -> list[Any]:
    refuse_pipe(file)
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".jsonl":
        found = parse_json(text)
        return list(found["confusion"] if isinstance(found, dict) else found)
    lines = [parse_json(line) for line in text.splitlines() if line.strip()]
    known = [line for line in lines if line.get("confusion")]
    return [triple for line in known if line["step"] == known[-1]["step"] for triple in line["confusion"]]
