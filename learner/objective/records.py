"""What a loss may read of one pack, and what it gives.

Axis letters, here and in `learner.model`:

    P  prompts of a step or a pack, one group each       T  tokens of a prompt
    G  completions of a group                            C  tokens of a completion
    R  rows: the completions of all groups of a pack     N  completion tokens of a pack, over all rows
    S  positions of a pack, prompts and branches         V  vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config.objective import ObjectiveConfig
from common.config.schema import Config

CLS_RL = ObjectiveConfig(correction="none")
MOST_LOG_RATIO = 20.0  # a ratio of 5e8


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """Return exp of a log-ratio of at most 20, beyond which it has no gradient.

    A ratio without end times an advantage of 0 is no number.
    """
    return torch.exp(log_ratio.clamp(max=MOST_LOG_RATIO))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """How many a loss is a mean over: all that train it in a step, over all packs of all ranks."""

    sequences: int
    groups: int
    tokens: int  # of these sequences, without those that `objective.mask_truncated` leaves out


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """What may change from step to step about a loss."""

    beta: float  # weight of the KL
    entropy_bonus: float = 0.0  # weight of the entropy

    @classmethod
    def of(cls, config: Config) -> Coefficients:
        """Return those of the configuration, which nothing has steered."""
        return cls(beta=config.learner.beta, entropy_bonus=config.objective.entropy_bonus)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Everything a loss may read of one pack. Tokens lie flat, without padding: token n belongs to row `row[n]`.

    Two completions of 2 tokens and 1 token, both of one group: row = (0, 0, 1), group = (0, 0).
    """

    logp: Tensor  # (N,) under the policy, with its graph
    old_logp: Tensor | None  # (N,) under the policy before the step's first update; None in that update: the same
    ref_logp: Tensor | None  # (N,) under the frozen reference; None where beta = 0
    engine_logp: Tensor  # (N,) as sampled
    entropy: Tensor | None  # (N,) of the policy, with its graph; None where its coefficient is 0
    row: Tensor  # (N,) int64
    group: Tensor  # (R,) int64: the group of each row, counted from 0 in every pack
    reward: Tensor  # (R,)
    advantage: Tensor  # (R,)
    truncated: Tensor  # (R,) bool: cut at `longest` tokens
    corrected: Tensor | None = None  # (R,) bool: `objective.correction` acts on the row; None: on all
    step: StepCounts
    coefficients: Coefficients
    objective: ObjectiveConfig = CLS_RL
    longest: int = 1  # most tokens a completion may have, for `objective.aggregation = constant`

    @property
    def groups_here(self) -> int:
        """P, the groups of this pack."""
        return int(self.group[-1]) + 1

    @property
    def rows_here(self) -> int:
        """R, the rows of this pack."""
        return len(self.group)

    @property
    def before(self) -> Tensor:
        """The (N,) log-probs of the policy that the step began with, without graph."""
        return self.logp.detach() if self.old_logp is None else self.old_logp

    @property
    def anchor(self) -> Tensor:
        """The (N,) log-probs that ratios compare with: those of `before`, under bypass the engine's."""
        return self.engine_logp if self.objective.correction == "bypass" else self.before

    @property
    def at_anchor(self) -> bool:
        """Whether every ratio is 1, so that nothing can be clipped."""
        return self.old_logp is None and self.objective.correction != "bypass"

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sum (N,) values of tokens into the (R,) values of whole rows."""
        return values.new_zeros(self.rows_here).index_add(0, self.row, values)

    def mean_rows(self, values: Tensor) -> Tensor:
        """Average (N,) values of tokens over each row: (R,)."""
        return self.sum_rows(values) / torch.bincount(self.row, minlength=self.rows_here)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """The shares of one pack: summed over all packs of all ranks they are the loss and the KL of the step."""

    loss: Tensor  # () with graph
    kl: Tensor  # () without
