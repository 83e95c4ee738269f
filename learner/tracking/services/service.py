"""What a tracker must be able to do, and what a run tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a tracker is told of a run as it begins."""

    id: str  # the same at every start of the run
    name: str
    project: str
    config: Mapping[str, Any]  # by key: {"learner.lr": 0.0005, ...}
    folder: Path  # for what its client keeps on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class SentSample:
    """A group of a step, as a table shows it: one row a completion."""

    image: Path | None  # its thumbnail; None without a picture
    problem: str
    label: str
    completions: Sequence[tuple[str, float]]  # text and reward


class Service(Protocol):
    """One run at a tracker. A call may take as long as the network does, and raise whatever its client raises."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the numbers of a step, or of an evaluation after so many steps."""

    def log_samples(self, step: int, samples: Sequence[SentSample]) -> None:
        """Send groups of a step as a table with their pictures."""

    def finish(self, outcome: str) -> None:
        """End the run there. The outcome is that of `summary.json`: "finished", "failed", "interrupted"."""


COLUMNS = ("step", "picture", "question", "label", "answer", "reward")


def list_rows(step: int, samples: Sequence[SentSample], show: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a table of samples, as `COLUMNS` names their values.

    Args:
        show: makes what the table shows of a picture in a file.
    """
    return [
        (step, show(one.image) if one.image else None, one.problem, one.label, text, reward)
        for one in samples
        for text, reward in one.completions
    ]
