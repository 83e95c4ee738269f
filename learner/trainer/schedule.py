"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

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
    """Return the rate of optimizer step `step` (from 0) of `steps`.

    It climbs over `warmup_steps`, never 0, is `peak` at step `warmup_steps`, and then stays or falls so that it would
    reach 0 at step `steps`, one past the last. Linear, 4 steps, 2 of warm-up: 1/3, 2/3, 1 and 1/2 of `peak`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / (steps - warmup_steps)
    shares = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    return peak * shares[schedule]
