"""Tensors by the thousand as one object of Ray's store, which Ray writes from where they lie.

Ray stores arrays of numpy so. A tensor it would copy into a stream first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTensor:
    """The bytes of a tensor."""

    raw: np.ndarray[Any, np.dtype[np.uint8]]  # (nbytes,)
    dtype: torch.dtype
    shape: tuple[int, ...]


def pack_tensors(value: Any) -> Any:
    """Return a tree of dicts, lists and tuples with its tensors packed: not copied if contiguous and on the CPU."""
    return _replace(value, torch.Tensor, _pack)


def unpack_tensors(value: Any) -> Any:
    """Return what was packed, in tensors of its own: those of the store can only be read."""
    return _replace(value, PackedTensor, _unpack)


def _replace(value: Any, kind: type, make: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return make(value)
    if isinstance(value, dict):
        replaced = type(value)()
        replaced.update((key, _replace(one, kind, make)) for key, one in value.items())
        return replaced
    if type(value) in (list, tuple):
        return type(value)(_replace(one, kind, make) for one in value)
    return value


def _pack(tensor: torch.Tensor) -> PackedTensor:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return PackedTensor(raw=flat.view(torch.uint8).numpy(), dtype=tensor.dtype, shape=tuple(tensor.shape))


def _unpack(packed: PackedTensor) -> torch.Tensor:
    tensor = torch.empty(packed.shape, dtype=packed.dtype)
    if packed.raw.size:
        tensor.view(-1).view(torch.uint8).numpy()[:] = packed.raw
    return tensor
