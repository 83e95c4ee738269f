"""A reward function that waits as long as a file is there, named by ROLLCALL_TEST_GATE: a run stands still between
steps while a test does something to it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GATE = "ROLLCALL_TEST_GATE"
GATED = ("reward.functions={tests.helpers.gated_reward:accuracy: 1.0}", "reward.timeout_s=600")


def accuracy(completions: Sequence[str], *, label: str, **columns: Any) -> list[float]:
    gate = Path(os.environ[GATE])
    while gate.exists():
        time.sleep(0.05)
    return [float(one == label) for one in completions]
