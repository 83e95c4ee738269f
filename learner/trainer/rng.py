"""Make a process compute the same at every run, and save and restore its random states (law 5)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from common.config.schema import Config
from common.errors import ModelError

IRREPRODUCIBLE = "does not have a deterministic implementation"  # torch's words


def make_reproducible(config: Config) -> None:
    """Fix all that could make two runs of a process differ.

    On a GPU an operation that torch cannot repeat raises. If torch only warned, the backward passes of flash and
    memory-efficient attention would stay as they are, and differ from run to run.
    """
    torch.set_num_threads(config.cluster.threads)
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # noqa: NPY002  # whatever third parties may draw from
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True, warn_only=config.cluster.device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costly, no use here


@contextmanager
def explain_irreproducible() -> Iterator[None]:
    """Raise ModelError in place of torch's RuntimeError for an operation that it cannot repeat bit for bit."""
    try:
        yield
    except RuntimeError as error:
        if IRREPRODUCIBLE not in str(error):
            raise
        raise ModelError(
            "this model cannot be trained on a GPU so that two runs end with the same weights",
            got=str(error).partition(", but you set")[0],
            remedy="model.freeze_vision = true if that is a part of the vision tower; else another model",
        ) from error


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
