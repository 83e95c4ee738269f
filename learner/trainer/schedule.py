"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    peak: float,
    steps: int,
    warmup_steps: int,
    schedule: Literal["linear", "cosine", "constant"],
) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`.

    It climbs over `warmup_steps` without ever wasting a step at 0, is `peak` at step `warmup_steps`, and then stays or
    falls so that it would reach 0 at step `steps`, one past the last.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / (steps - warmup_steps)
    shares = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    return peak * shares[schedule]
