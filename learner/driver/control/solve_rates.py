"""How often the completions of each row were right, over all epochs: the solve rate, and what is decided by it.

A completion is right if its answer is, as reward `accuracy` and every evaluation count it, whatever a run rewards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from math import fsum
from typing import NamedTuple

from common.config.schema import Config
from common.errors import CheckpointError
from common.labels.answers import is_right
from common.types import ScoredGroup, request_seed

_REMEMBERED = 0.5  # of older visits at each new one: the policy has changed since
LEAST_CHANCE = 0.1  # of a row to be asked in an epoch under a curriculum, so that none is forgotten
_HARD, _EASY = 0.1, 0.9  # rates below the one and above the other
_CHANCES = 2**48  # values of a request's seed


class RowRecord(NamedTuple):
    """What the visits of one row gave. Two visits of 4 completions, 4 and then 2 right, are 4 right of 6."""

    right: float  # completions, those of earlier visits halved at each later one
    asked: float  # completions, likewise
    solved_in_a_row: int  # latest visits in which all completions were right
    epoch: int  # of the latest visit

    @property
    def rate(self) -> float:
        return self.right / self.asked

    @property
    def kind(self) -> str:
        if self.rate < _HARD:
            return "hard"
        return "easy" if self.rate > _EASY else "middle"


_NEVER = RowRecord(right=0.0, asked=0.0, solved_in_a_row=0, epoch=0)


class SolveRates:
    """A table of all rows that were sampled so far."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rows: dict[str, RowRecord] = {}
        self._counts = Counter[str]()  # rows of each kind

    def observe(self, scored: Sequence[ScoredGroup], drawn: Mapping[str, int]) -> None:
        """Add the sampled groups of a step.

        Args:
            drawn: the epoch that each prompt was drawn in.
        """
        for one in scored:
            if one.group.origin == "sampled":
                self._add(one, drawn[one.prompt.id])

    def _add(self, scored: ScoredGroup, epoch: int) -> None:
        row, data, label = scored.prompt.example, self._config.data, scored.prompt.example.label
        aliases = data.aliases.get(label, ())
        said = [one.text for one in scored.group.completions]
        right = sum(is_right(text, label, mode=data.mode, aliases=aliases) for text in said)

        before = self._rows.get(row.id, _NEVER)
        if before.asked:
            self._counts[before.kind] -= 1
        record = self._rows[row.id] = RowRecord(
            right=_REMEMBERED * before.right + right,
            asked=_REMEMBERED * before.asked + len(said),
            solved_in_a_row=before.solved_in_a_row + 1 if right == len(said) else 0,
            epoch=epoch,
        )
        self._counts[record.kind] += 1

    def wants(self, row: str, epoch: int) -> bool:
        """Say whether a row is asked in an epoch, as `signal` says; a row that was never asked always is."""
        signal, record = self._config.signal, self._rows.get(row)
        if record is None:
            return True
        solved = signal.skip_solved and record.solved_in_a_row >= signal.skip_solved
        if solved and epoch <= record.epoch + signal.skip_epochs:
            return False
        return signal.curriculum == "none" or self._draw(row, epoch) < find_chance(record.rate)

    def estimate(self, rows: Sequence[str]) -> list[float]:
        """Return the solve rates of rows, each drawn towards the mean of all rows as by one more completion.

        Rows that were never asked have that mean, and 0.5 before any was: 4 right of 4, with a mean of 0.5, are 0.9.
        """
        known, asked = self._rows.values(), fsum(record.asked for record in self._rows.values())
        mean = fsum(record.right for record in known) / asked if asked else 0.5
        found = [self._rows.get(row, _NEVER) for row in rows]
        return [(record.right + mean) / (record.asked + 1) for record in found]

    def describe(self) -> dict[str, float]:
        """Return how many rows were asked so far, and the shares of hard and of easy ones; {} before any was.

        A row is hard if fewer than a tenth of its completions were right, and easy if more than nine tenths were.
        """
        rows = len(self._rows)
        return {"rows": rows, **{kind: self._counts[kind] / rows for kind in ("hard", "easy")}} if rows else {}

    def _draw(self, row: str, epoch: int) -> float:
        """Return a random number below 1, by run, epoch and row alone."""
        return request_seed(self._config.seed, epoch, f"curriculum {row}") / _CHANCES

    def state(self) -> dict[str, RowRecord]:
        """Return what a checkpoint must hold: a copy, which later steps leave as it is."""
        return dict(self._rows)

    def restore(self, state: Mapping[str, Sequence[float]], known: Container[str] | None = None) -> None:
        """Go on from the state of a checkpoint.

        Args:
            known: the rows of the data; None: any.

        Raises CheckpointError for a table that no run wrote.
        """
        for row, record in state.items():
            if (known is not None and row not in known) or not _is_sound(record):
                raise CheckpointError(
                    "the table of solve rates in the checkpoint cannot be used",
                    got=f"{row}: {record}" if known is None or row in known else f"{row}, which is no row of the data",
                    remedy="resume from a checkpoint as a run wrote it",
                )
        self._rows = {row: RowRecord(*record) for row, record in state.items()}  # type: ignore[arg-type]
        self._counts = Counter(record.kind for record in self._rows.values())


def _is_sound(record: Sequence[float]) -> bool:
    """Say whether a record may be that of a row: 0 to `asked` completions were right, in so many visits."""
    if len(record) != len(RowRecord._fields) or any(type(value) not in (int, float) for value in record):
        return False
    right, asked, solved, epoch = record
    counts = isinstance(solved, int) and isinstance(epoch, int) and min(solved, epoch) >= 0
    return counts and 0 <= right <= asked < math.inf and asked > 0


def find_chance(rate: float) -> float:
    """Return the chance of a row to be asked in an epoch: 1 where half its completions are right, 0.1 where all are.

    Source: sampling for learnability, p(1 - p) (Foster et al. 2025, arXiv:2502.12272), here as a chance for each row.
    """
    return max(LEAST_CHANCE, 4 * rate * (1 - rate))
