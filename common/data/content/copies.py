"""Copies of one picture among the rows of several splits, and labels that contradict each other about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from common.data.sources import ExampleSource, Outline
from common.labels.answers import Aliases, Mode, normalise
from common.labels.candidates import read_list, replace_list


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A split, and what its rows are for."""

    source: ExampleSource
    trains: bool  # its rows are trained on; others are evaluated on
    says_train: bool = False  # by its name: it may hold rows of another such split of its place, as base_train does
    place: str = ""


@dataclass(frozen=True, slots=True, order=True)
class RowRef:
    """A row by the number of its part and its own."""

    part: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """Two rows that show one picture, ask the same and want different answers."""

    one: RowRef
    other: RowRef
    offered: bool  # one of the two questions offers the other's answer: one of the labels is wrong


class Copies:
    """The rows of all parts by their pictures. Rows without a picture are no copies of anything."""

    def __init__(self, parts: Sequence[Part], *, mode: Mode, aliases: Aliases) -> None:
        self.parts = parts
        self._mode, self._aliases = mode, aliases
        self._stems: dict[str, str] = {}
        self._offers: dict[str, frozenset[str] | None] = {}

    @cached_property
    def groups(self) -> list[list[RowRef]]:
        """The rows of each picture that several rows show, in their order."""
        found: dict[bytes, list[RowRef]] = defaultdict(list)
        for number, part in enumerate(self.parts):
            for row, outline in enumerate(part.source.outlines):
                if outline.picture:
                    found[outline.picture].append(RowRef(number, row))
        return [rows for rows in found.values() if len(rows) > 1]

    def outline(self, ref: RowRef) -> Outline:
        """Return the outline of a row."""
        return self.parts[ref.part].source.outlines[ref.row]

    def find_clashes(self) -> Iterator[Clash]:
        """Yield two rows for each pair of labels that one picture has under the same question.

        The same question may have another list. Another name of a label, from `data.aliases`, is no other label.
        """
        for rows in self.groups:
            by_stem: dict[str, dict[str, list[RowRef]]] = defaultdict(lambda: defaultdict(list))
            for ref in rows:
                outline = self.outline(ref)
                by_stem[self._stem(outline.problem)][outline.label].append(ref)
            for by_label in by_stem.values():
                for (label, own), (other, others) in combinations(by_label.items(), 2):
                    if not self._names(label) & self._names(other):
                        yield self._clash(own, others)

    def find_repeats(self, number: int) -> list[tuple[RowRef, RowRef]]:
        """Return the rows of one part that repeat picture, question and label of another, each with the first."""
        found: list[tuple[RowRef, RowRef]] = []
        for rows in self.groups:
            first: dict[tuple[str, str], RowRef] = {}
            for ref in rows:
                if ref.part == number:
                    outline = self.outline(ref)
                    earlier = first.setdefault((self._stem(outline.problem), outline.label), ref)
                    if earlier != ref:
                        found.append((ref, earlier))
        return sorted(found)

    def find_shared(self, number: int, others: Sequence[int]) -> list[tuple[RowRef, RowRef]]:
        """Return the rows of one part whose picture is in one of the `others` too, each with the first such row."""
        found: list[tuple[RowRef, RowRef]] = []
        for rows in self.groups:
            there = next((ref for ref in rows if ref.part in others), None)
            if there:
                found += [(ref, there) for ref in rows if ref.part == number]
        return sorted(found)

    def _clash(self, rows: Sequence[RowRef], others: Sequence[RowRef]) -> Clash:
        """Return two rows of two labels: if possible of which one offers the label of the other, and that train."""
        pairs = [(one, other) for one in rows[:_TRIED] for other in others[:_TRIED]]
        best = max(pairs, key=lambda pair: (self._denies(*pair), self._trains(pair)))
        one, other = sorted(best)
        return Clash(one=one, other=other, offered=self._denies(one, other))

    def _trains(self, pair: tuple[RowRef, RowRef]) -> int:
        return sum(self.parts[ref.part].trains for ref in pair)

    def _denies(self, one: RowRef, other: RowRef) -> bool:
        """Whether one of the rows could be answered with the label of the other, and calls that wrong."""
        return self._offers_label(one, self.outline(other).label) or self._offers_label(other, self.outline(one).label)

    def _offers_label(self, ref: RowRef, label: str) -> bool:
        problem = self.outline(ref).problem
        if problem not in self._offers:
            listed = read_list(problem)
            self._offers[problem] = None if listed is None else frozenset(listed)
        offered = self._offers[problem]
        return offered is None or label in offered  # an open question may be answered with anything

    def _stem(self, problem: str) -> str:
        """Return the question without its class list; the options of a multiple choice question are part of it."""
        if problem not in self._stems:
            self._stems[problem] = replace_list(problem, ())
        return self._stems[problem]

    def _names(self, label: str) -> set[str]:
        return {normalise(name, self._mode) for name in (label, *self._aliases.get(label, ()))}


_TRIED = 20  # rows of each label: a picture may stand in thousands of rows


def describe_pairs(copies: Copies, pairs: Sequence[tuple[RowRef, RowRef]], *, named: int = 3) -> str:
    """Return the first pairs of rows in words: `test/0 (cat/1.png) = train/4 (cat/9.png); and 2 more`."""
    lines = [f"{name_row(copies, one)} = {name_row(copies, other)}" for one, other in pairs[:named]]
    return "; ".join([*lines, *([f"and {len(pairs) - named} more"] if len(pairs) > named else [])])


def name_row(copies: Copies, ref: RowRef) -> str:
    """Return the id of a row, its picture's file where that is known, and its part where several hold such an id."""
    source = copies.parts[ref.part].source
    alike: Mapping[str, int] = {part.source.name: 1 for part in copies.parts if part.source.split == source.split}
    return source.describe(ref.row) + (f" of {source.name}" if len(alike) > 1 else "")
