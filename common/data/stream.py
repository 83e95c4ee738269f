"""An endless stream of batches that can be stopped and resumed at any batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "deferred", tuple(self.deferred))  # JSON makes it a list


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
        self.restore(StreamState(rows=len(source), epoch=0, position=0, deferred=()))

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
        )

    def restore(self, state: StreamState) -> None:
        """Go on from `state`. Raises DataError when it was taken on a data set of another size."""
        if state.rows != len(self._source):
            raise DataError(
                f"the stream's state was not taken on {self._source.name}",
                got=f"{state.rows} rows then, {len(self._source)} now",
                remedy="resume with the data the run began with, or start a new run",
            )
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
