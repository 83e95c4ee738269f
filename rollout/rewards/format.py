"""Reward for the format of the mode, whatever the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.labels.answers import Mode, is_well_formed


def format_reward(completions: Sequence[str], *, mode: Mode, **columns: Any) -> Sequence[float]:
    """Return (G,) 1 for a completion in the format of its mode, else 0 (`common.labels.answers.is_well_formed`)."""
    return [float(is_well_formed(completion, mode)) for completion in completions]
