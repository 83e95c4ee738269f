"""The coefficients of the loss, steered towards what the configuration wants from what the last step measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from common.config.schema import Config
from common.errors import CheckpointError
from common.types import StepResult
from learner.objective.records import Coefficients

_MOST = 0.2  # share by which the KL counts as off its target, at most
_LARGEST_BETA = 1e6  # as of `learner.beta`


class Steering:
    """Holds the coefficients of the next step.

    Under `objective.kl_target` the weight of the KL rises while the KL is above its target, and falls below it. Under
    `objective.entropy_floor` the entropy bonus acts only after a step whose entropy was below the floor.
    """

    def __init__(self, config: Config) -> None:
        self._objective, self._completions = config.objective, config.completions
        self._beta, self._below_floor = config.learner.beta, False

    @property
    def coefficients(self) -> Coefficients:
        """The coefficients of the next step."""
        floor = self._objective.entropy_floor
        bonus = self._objective.entropy_bonus if floor is None or self._below_floor else 0.0
        return Coefficients(beta=self._beta, entropy_bonus=bonus)

    def observe(self, result: StepResult) -> None:
        """Steer by the figures of a step.

        A KL of 0.12 with a target of 0.1 is 0.2 off. With a horizon of 10,000 completions and 128 a step the weight
        becomes 1 + 0.2 * 128 / 10000 = 1.00256 times what it was.

        Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
        """
        target = self._objective.kl_target
        if target is not None and math.isfinite(result.kl):  # one update of several may have had no number
            off = min(max(result.kl / target - 1, -_MOST), _MOST)
            share = min(1.0, self._completions / self._objective.kl_horizon)  # of more the weight could turn negative
            self._beta = min(self._beta * (1 + off * share), _LARGEST_BETA)
        if self._objective.entropy_floor is not None and math.isfinite(result.entropy):
            self._below_floor = result.entropy < self._objective.entropy_floor

    def state(self) -> dict[str, float]:
        """Return what a checkpoint must hold."""
        return {"beta": self._beta, "below_floor": float(self._below_floor)}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from the state of a checkpoint. Raises CheckpointError for one that no run wrote."""
        beta, below = state["beta"], state["below_floor"]
        if not 0 <= beta <= _LARGEST_BETA or below not in (0, 1):
            raise CheckpointError(
                "the steered coefficients in the checkpoint cannot be used",
                got=f"beta {beta}, below_floor {below}",
                remedy="resume from a checkpoint as a run wrote it",
            )
        self._beta, self._below_floor = float(beta), bool(below)
