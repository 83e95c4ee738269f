"""A row of a set and what was answered to it, with the verdicts every measure is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.config.schema import DataConfig
from common.labels.answers import closed_choice, find_candidate, is_right, is_well_formed
from common.labels.candidates import candidates
from common.labels.consistency import consistency
from common.types import Example

NONE = ""  # what an answer names that is none of the list


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One completion, judged."""

    text: str
    strict: bool
    lenient: bool
    well_formed: bool
    named: str  # the candidate it strictly gives; NONE for none of them
    consistent: float | None = None  # how far its thought names that answer alone; None without a thought


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedScores:
    """The candidates of a row, each as a whole answer."""

    candidates: tuple[str, ...]  # (K,)
    logprobs: tuple[float, ...]  # (K,)
    lengths: tuple[int, ...]  # (K,) in tokens

    def choice(self, *, normalised: bool = False) -> str:
        """The candidate of the highest log-prob, or of the highest mean log-prob of a token."""
        return self.candidates[closed_choice(self.logprobs, self.lengths if normalised else None)]

    def probabilities(self) -> npt.NDArray[np.float64]:
        """(K,) as the log-probs have it, given that the answer is one of the list."""
        weights = np.exp(np.subtract(self.logprobs, max(self.logprobs)))
        return np.asarray(weights / weights.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One row of a set and all that was answered to it."""

    id: str
    problem: str
    label: str
    listed: bool  # its question offers a list
    greedy: Answer
    samples: tuple[Answer, ...] = ()  # (n,)
    closed: ClosedScores | None = None


def give_verdict(
    example: Example,
    greedy: str,
    *,
    data: DataConfig,
    labels: Sequence[str],
    samples: Sequence[str] = (),
    closed: ClosedScores | None = None,
) -> Verdict:
    """
    Args:
        labels: of the whole set, which an answer may name where the question offers no list.
    """
    listed = candidates(example.problem)
    offered = listed or labels
    return Verdict(
        id=example.id,
        problem=example.problem,
        label=example.label,
        listed=listed is not None,
        greedy=_answer(greedy, example, offered, data),
        samples=tuple(_answer(text, example, offered, data) for text in samples),
        closed=closed,
    )


def _answer(text: str, example: Example, offered: Sequence[str], data: DataConfig) -> Answer:
    label, mode = example.label, data.mode
    also = data.aliases.get(label, ())
    strict = is_right(text, label, mode=mode, aliases=also)
    return Answer(
        text=text,
        strict=strict,
        lenient=is_right(text, label, mode=mode, variant="lenient", aliases=also),
        well_formed=is_well_formed(text, mode),
        named=label if strict else find_candidate(text, offered, mode=mode, aliases=data.aliases) or NONE,
        consistent=consistency(text, example.problem, mode=mode, aliases=data.aliases),
    )
