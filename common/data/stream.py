"""An endless stream of batches that can be stopped and resumed at any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from common.data.content.digests import digest_all, digest_set, digest_text
from common.data.sources import ExampleSource
from common.errors import DataError
from common.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """The place of a stream. `dataclasses.asdict` of it goes through JSON and back."""

    rows: int  # of the data set it was taken on
    epoch: int
    position: int  # rows of this epoch's permutation already taken
    deferred: tuple[int, ...]  # taken early in a batch that held them already; they open the next one
    digests: Mapping[str, str] | None = None  # see `digest_rows`; None: written by a version that made none

    def __post_init__(self) -> None:
        object.__setattr__(self, "deferred", tuple(self.deferred))  # JSON makes it a list


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


class PromptStream:
    """Deals batches of `prompts_per_step` different rows, each epoch in an order drawn from (seed, epoch).

    A batch may lie in two epochs. A row that it holds already is deferred to the next batch, so none is lost. With 3
    rows and batches of 2, the epochs `0 1 2` and `2 0 1` give [0, 1], [2, 0], [2, 1]: the second 2 was deferred.
    """

    def __init__(
        self,
        source: ExampleSource,
        *,
        seed: int,
        prompts_per_step: int,
        worded: Callable[[Example, int], Example] | None = None,
    ) -> None:
        """Begin at the first batch.

        `worded` makes the example of a visit out of a row and the epoch it was drawn in: see `Reshuffle`. By default
        the row stays as it is.

        Raises DataError when `source` has fewer rows than a batch.
        """
        if len(source) < prompts_per_step:
            raise DataError(
                f"{source.name} has fewer rows than one step takes prompts",
                got=f"{len(source)} rows, rollout.prompts_per_step = {prompts_per_step}",
                remedy=f"lower rollout.prompts_per_step to {len(source)} or less, or add data",
            )
        self._source = source
        self._seed = seed % 2**64
        self._size = prompts_per_step
        self._worded = worded
        self._deferred: list[int] = []
        self._digests = digest_rows(source)
        self._go_to(StreamState(rows=len(source), epoch=0, position=0, deferred=()))

    def next_batch(self) -> list[Example]:
        """Return the next P examples, with P different ids."""
        batch = dict.fromkeys(self._deferred, self._epoch)  # row: the epoch it was drawn in
        self._deferred = []
        while len(batch) < self._size:
            row = self._next_row()
            if row in batch:
                self._deferred.append(row)  # always of the epoch that the next batch begins in
            else:
                batch[row] = self._epoch
        worded = self._worded or (lambda example, epoch: example)
        return [worded(self._source[row], epoch) for row, epoch in batch.items()]

    def state(self) -> StreamState:
        """Return the place after the batches that were taken."""
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
        self._go_to(state)

    def _go_to(self, state: StreamState) -> None:
        self._epoch, self._position, self._deferred = (
            state.epoch,
            state.position,
            list(state.deferred),
        )
        self._order = self._permutation()

    def _next_row(self) -> int:
        if self._position == len(self._order):
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._permutation()
        self._position += 1
        return self._order[self._position - 1]

    def _permutation(self) -> list[int]:
        order: list[int] = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._source)).tolist()
        return order
