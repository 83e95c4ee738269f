"""Verdicts: a row of a set with its answers, and whether each is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.config.schema import DataConfig
from common.labels.answers import choose_closed_set, find_candidate, is_right, is_well_formed
from common.labels.candidates import candidates
from common.labels.consistency import consistency
from common.types import Example

NONE = ""  # stands for an answer that names no candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One completion and its verdict."""

    text: str
    strict: bool
    lenient: bool
    well_formed: bool
    named: str  # the candidate that it gives by the strict metric; NONE where it gives none
    consistent: float | None = None  # 0 to 1: how far its thought names that answer alone; None without a thought


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedScores:
    """The log-probs of a row's candidates, each as a whole answer."""

    candidates: tuple[str, ...]  # (K,)
    logprobs: tuple[float, ...]  # (K,)
    lengths: tuple[int, ...]  # (K,) in tokens

    def choice(self, *, normalised: bool = False) -> str:
        """Return the candidate of the highest log-prob, or of the highest mean log-prob of a token (`normalised`)."""
        return self.candidates[choose_closed_set(self.logprobs, self.lengths if normalised else None)]

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Return (K,) probabilities, given that the answer is one of the list."""
        weights = np.exp(np.subtract(self.logprobs, max(self.logprobs)))
        return np.asarray(weights / weights.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One row of a set, with its answers."""

    id: str
    problem: str
    label: str
    listed: bool  # the question offers a list
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
    """Judge the answers to one row.

    Args:
        greedy: text of the greedy answer.
        labels: those of the whole set; an answer may name them where the question offers no list.
        samples: texts of the sampled answers.
    """
    listed = candidates(example.problem)
    offered = listed or labels
    return Verdict(
        id=example.id,
        problem=example.problem,
        label=example.label,
        listed=listed is not None,
        greedy=_judge_answer(greedy, example, offered, data),
        samples=tuple(_judge_answer(text, example, offered, data) for text in samples),
        closed=closed,
    )


def _judge_answer(text: str, example: Example, offered: Sequence[str], data: DataConfig) -> Answer:
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
