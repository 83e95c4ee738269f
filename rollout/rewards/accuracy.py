"""Reward for the right label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.labels.answers import NO_ALIASES, Aliases, Mode, is_right


def accuracy_reward(
    completions: Sequence[str], *, label: str, mode: Mode, aliases: Aliases = NO_ALIASES, **columns: Any
) -> Sequence[float]:
    """Return (G,) 1 for a strictly right answer, else 0 (`common.labels.answers.is_right`)."""
    return [float(is_right(completion, label, mode=mode, aliases=aliases.get(label, ()))) for completion in completions]
