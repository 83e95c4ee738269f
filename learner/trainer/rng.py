"""Save and restore the random states of a process."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch


def read_random_states() -> dict[str, Any]:
    """Return the states of torch, Python and numpy, in types that load without running code from the file."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Go on drawing from where `read_random_states` was called."""
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
