"""An endless stream of rows that can be stopped and resumed after any draw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.data.content.digests import digest_all, digest_set, digest_text
from common.data.sources import ExampleSource
from common.errors import DataError
from common.types import Example


class Visit(NamedTuple):
    """A row, and the epoch in whose order it came up."""

    row: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """The place of a stream. `dataclasses.asdict` of it goes through JSON and back."""

    rows: int  # of the data set it was taken on
    epoch: int
    position: int  # rows of this epoch's permutation already taken
    deferred: tuple[Visit, ...]  # came up while their step held that row already; they open the next draw
    digests: Mapping[str, str] | None = None  # see `digest_rows`; None: written by a version that made none

    def __post_init__(self) -> None:
        """Read what JSON makes of `deferred`: lists, or bare rows, which were all of this epoch."""
        found: Sequence[int | Sequence[int]] = self.deferred
        visits = [Visit(one, self.epoch) if isinstance(one, int) else Visit(*one) for one in found]
        object.__setattr__(self, "deferred", tuple(visits))

    @property
    def epochs(self) -> float:
        """Passes over the rows so far: 1.25 once all were drawn, or passed over, and a quarter of them again."""
        return (self.epoch * self.rows + self.position - len(self.deferred)) / self.rows


def digest_rows(source: ExampleSource) -> dict[str, str]:
    """Return a digest of each thing that all rows hold, in their order, and of the rows in whatever order.

    Where the rows lie, in how many files and how their pictures are encoded, is in none of them.
    """
    outlines = source.outlines
    known: dict[str, bytes] = {}  # rows share questions and labels

    def of(text: str) -> bytes:
        if text not in known:
            known[text] = digest_text(text)
        return known[text]

    found = {
        "numbers": [digest_text(outline.id) for outline in outlines],
        "questions": [of(outline.problem) for outline in outlines],
        "labels": [of(outline.label) for outline in outlines],
        "pictures": [outline.picture for outline in outlines],
        "other columns": [outline.columns for outline in outlines],
    }
    held = zip(*(digests for what, digests in found.items() if what != "numbers"), strict=True)
    rows = [bytes.fromhex(digest_all(digests)) for digests in held]
    return {what: digest_all(digests) for what, digests in found.items()} | {_IN_ANY_ORDER: digest_set(rows)}


_IN_ANY_ORDER = "rows in any order"


def check_rows(state: StreamState, source: ExampleSource) -> None:
    """Raise DataError when `state` was taken on other rows than those of `source`, naming what they differ in."""
    if state.rows != len(source):
        differ = f"{state.rows} rows then, {len(source)} now"
    elif state.digests is None:
        return
    else:
        now = digest_rows(source)
        differ = ", ".join(what for what in now if what != _IN_ANY_ORDER and state.digests.get(what) != now[what])
        if differ and state.digests.get(_IN_ANY_ORDER) == now[_IN_ANY_ORDER]:
            differ = "the same rows in another order"
        elif differ:
            differ = f"as many rows, with other {differ}"
    if differ:
        raise DataError(
            f"{source.name} does not hold the rows that the run began with",
            got=differ,
            remedy="resume with the data the run began with, wherever it lies now; or start a new run",
        )


def want_all(row_id: str, epoch: int) -> bool:
    """Pass over no row."""
    return True


class PromptStream:
    """Draws rows for one step after another, each epoch in an order drawn from (seed, epoch).

    A step may lie in two epochs. A row that it holds already is deferred to the next draw, so none is lost. With 3
    rows and 2 a step, the epochs `0 1 2` and `2 0 1` give [0, 1], [2, 0], [2, 1]: the second 2 was deferred.
    """

    def __init__(
        self,
        source: ExampleSource,
        *,
        seed: int,
        prompts_per_step: int,
        worded: Callable[[Example, int], Example] | None = None,
    ) -> None:
        """Begin at the first row.

        `worded` makes the example of a visit out of a row and the epoch it was drawn in: see `Reshuffle`. By default
        the row stays as it is.

        Raises DataError when `source` has fewer rows than a step takes prompts.
        """
        if len(source) < prompts_per_step:
            raise DataError(
                f"{source.name} has fewer rows than one step takes prompts",
                got=f"{len(source)} rows, rollout.prompts_per_step = {prompts_per_step}",
                remedy=f"lower rollout.prompts_per_step to {len(source)} or less, or add data",
            )
        self._source = source
        self._seed = seed % 2**64
        self._worded = worded
        self._ids = [outline.id for outline in source.outlines]
        self._digests = digest_rows(source)
        self._epoch, self._position = 0, 0
        self._deferred: list[Visit] = []
        self._order: list[int] = []
        self._go_to(StreamState(rows=len(source), epoch=0, position=0, deferred=()))

    def draw(
        self, count: int, *, without: Collection[str] = (), wanted: Callable[[str, int], bool] = want_all
    ) -> list[Visit]:
        """Draw `count` different rows; fewer where there are not so many beside those of `without`.

        Args:
            without: ids of rows that this step holds already. They are deferred.
            wanted: says of a row id and an epoch whether to ask that row, or to pass over it in that epoch. Where all
                of the next epoch has too few that are wanted, those passed over are drawn all the same.
        """
        count = min(count, len(self._source) - len(without))
        drawn: dict[int, Visit] = {}
        waiting, self._deferred = self._deferred, []
        passed: list[Visit] = []
        last = self._epoch + 1

        def add(visit: Visit) -> None:
            if len(drawn) == count or visit.row in drawn or self._ids[visit.row] in without:
                self._deferred.append(visit)
            elif wanted(self._ids[visit.row], visit.epoch):
                drawn[visit.row] = visit
            else:
                passed.append(visit)

        for visit in waiting:
            add(visit)
        while len(drawn) < count and not (self._epoch == last and self._position == len(self._order)):
            add(self._next_visit())
        for visit in passed[::-1]:  # of a row that was passed over twice, the later visit
            if len(drawn) < count and visit.row not in drawn and self._ids[visit.row] not in without:
                drawn[visit.row] = visit
        return list(drawn.values())

    def peek(self, count: int, *, wanted: Callable[[str, int], bool] = want_all) -> list[Visit]:
        """Return what the next step will draw first, if as much is wanted then as now."""
        place = (self._epoch, self._position, self._deferred, self._order)
        try:
            return self.draw(count, wanted=wanted)
        finally:
            self._epoch, self._position, self._deferred, self._order = place

    def find(self, row_id: str) -> int:
        """Return the number of a row. Raises DataError where no row has that id."""
        if row_id not in self._ids:
            raise DataError(
                f"{self._source.name} has no row {row_id}",
                got=f"{len(self._ids)} others",
                remedy="resume with the data the run began with",
            )
        return self._ids.index(row_id)

    def read(self, visits: Sequence[Visit]) -> list[Example]:
        """Return the example of each visit."""
        worded = self._worded or (lambda example, epoch: example)
        return [worded(self._source[visit.row], visit.epoch) for visit in visits]

    def state(self) -> StreamState:
        """Return the place after what was drawn."""
        return StreamState(
            rows=len(self._source),
            epoch=self._epoch,
            position=self._position,
            deferred=tuple(self._deferred),
            digests=self._digests,
        )

    def restore(self, state: StreamState) -> None:
        """Go on from `state`. Raises DataError when it was taken on other rows."""
        check_rows(state, self._source)
        rows = len(self._source)
        held = all(0 <= visit.row < rows and visit.epoch >= 0 for visit in state.deferred)
        if not (state.epoch >= 0 and 0 <= state.position <= rows and held):
            raise DataError(
                "the place in the training data is none",
                got=f"epoch {state.epoch}, position {state.position} of {rows} rows",
                remedy="resume from a checkpoint as a run wrote it",
            )
        self._go_to(state)

    def _go_to(self, state: StreamState) -> None:
        self._epoch, self._position, self._deferred = state.epoch, state.position, list(state.deferred)
        self._order = self._permutation()

    def _next_visit(self) -> Visit:
        if self._position == len(self._order):
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._permutation()
        self._position += 1
        return Visit(self._order[self._position - 1], self._epoch)

    def _permutation(self) -> list[int]:
        order: list[int] = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._source)).tolist()
        return order
