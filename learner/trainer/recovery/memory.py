"""A rank's state in memory: what a checkpoint holds of it, as one object of Ray's store, read back in another process.

The object is the value of a call, so the driver owns it: it outlives the rank that made it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from learner.model.reference import MovingReference
from learner.trainer.rank_files import find_reference, name_reference
from learner.trainer.rng import read_random_states, set_random_states

Packed = tuple[bytes, list[np.ndarray[Any, np.dtype[np.uint8]]]]  # a pickle, and the bytes of its tensors


def copy_state(engine: Any, *, rank: int, moving: MovingReference | None) -> Packed:
    """Return what this rank trains, its optimizer, the step counter and random states. A collective.

    Tensors of a CPU are not copied: Ray does that as it stores the value.
    """
    from learner.trainer import zero

    files = zero.capture(engine)
    files[_name_own(rank)] = read_random_states()
    if moving and find_reference(engine, rank) == rank:
        files[name_reference(rank)] = moving.state()
    return pack_tensors(files)


def restore_state(engine: Any, copies: Sequence[Packed], *, rank: int, moving: MovingReference | None) -> None:
    """Put engine, reference and random states back to where `copy_state` was called. A collective.

    Args:
        copies: of this rank, and of rank 0 where it holds what all read.
    """
    from learner.trainer import zero

    files: dict[str, Any] = {}
    for packed in copies:
        files = unpack_tensors(packed) | files
    zero.load_captured(engine, files)
    if moving:
        moving.restore(files[name_reference(find_reference(engine, rank))])
    set_random_states(files[_name_own(rank)])


def _name_own(rank: int) -> str:
    return f"random-{rank}"


def pack_tensors(value: Mapping[str, Any]) -> Packed:
    """Pickle a value, its tensors apart and uncopied where they are contiguous and on the CPU."""
    stream, found = io.BytesIO(), list[pickle.PickleBuffer]()
    _TensorPickler(stream, protocol=5, buffer_callback=found.append).dump(dict(value))
    return stream.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in found]


def unpack_tensors(packed: Packed) -> dict[str, Any]:
    """Return what was packed, in tensors of its own: those of the store can only be read."""
    stream, arrays = packed
    unpacked: dict[str, Any] = pickle.loads(stream, buffers=arrays)
    return unpacked


class _TensorPickler(pickle.Pickler):
    """Hands the bytes of tensors to `buffer_callback`; torch's own way would copy them into the stream."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        flat = value.detach().cpu().contiguous().view(-1)
        return _make_tensor, (flat.view(torch.uint8).numpy(), flat.dtype, tuple(value.shape))


def _make_tensor(raw: np.ndarray[Any, np.dtype[np.uint8]], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    made = torch.empty(shape, dtype=dtype)
    if raw.size:
        made.view(-1).view(torch.uint8).numpy()[:] = raw
    return made
