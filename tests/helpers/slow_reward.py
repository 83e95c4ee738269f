"""A reward function whose module takes seconds to import; a file in the folder of Ray's session names who does so."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

LOADS_S = 4.0


def note_folder() -> Path:
    """The folder with one file a process that has begun to import this, named as its pid."""
    node: Any = ray._private.worker.global_worker.node  # noqa: SLF001
    folder = Path(node.get_session_dir_path(), "slow_reward")
    folder.mkdir(exist_ok=True)
    return folder


def accuracy(completions: Sequence[str], *, label: str, **columns: Any) -> list[float]:
    return [float(one == label) for one in completions]


if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
    (note_folder() / str(os.getpid())).touch()
    time.sleep(LOADS_S)
