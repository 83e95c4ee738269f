"""Reward for a thought that names its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.labels.answers import NO_ALIASES, Aliases, Mode
from common.labels.consistency import consistency


def consistency_reward(
    completions: Sequence[str], *, problem: str, mode: Mode, aliases: Aliases = NO_ALIASES, **columns: Any
) -> Sequence[float]:
    """Return (G,) how far each thought names its answer alone, by `common.labels.consistency`; 0 without a thought."""
    measured = (consistency(completion, problem, mode=mode, aliases=aliases) for completion in completions)
    return [one or 0.0 for one in measured]
