"""Tensors by the thousand as one object of Ray's store, written there from where they lie."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Packed = tuple[bytes, list[np.ndarray[Any, np.dtype[np.uint8]]]]  # a pickle, and the bytes of its tensors


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
