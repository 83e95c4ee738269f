"""Receiving half of weight transfer: verified bytes out of the object store, as tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from common.checksum import checksum
from common.errors import BrokenEngineError, EngineError
from common.types import WeightBucket, WeightEntry, WeightManifest

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

Tensors = list[tuple[str, "torch.Tensor"]]
FETCH_S = 600.0


class Arrived(NamedTuple):
    """Weights as they lie in the object store."""

    tensors: Tensors
    unchanged: frozenset[str]  # names of those that are the very objects of an earlier manifest


class Inbox:
    """The buckets of an engine. What comes again as the same object is neither fetched nor checked again."""

    def __init__(self) -> None:
        self._fixed: dict[Any, Tensors] = {}  # by ObjectRef; they alias the store's memory

    def receive(self, manifest: WeightManifest, *, towers: bool) -> Arrived:
        """The whole manifest, or all but `towers` for an engine that has them.

        Tensors alias the object store's memory. All buckets are fetched at once, so that one is on its way while
        another is checked.

        Raises:
            EngineError: a bucket's checksum is not the manifest's.
            BrokenEngineError: the bytes do not come.
        """
        import ray

        buckets = [bucket for bucket in manifest.buckets if towers or bucket.kind != "towers"]
        new = [bucket for bucket in buckets if bucket.payload not in self._fixed]
        try:
            payloads = ray.get([bucket.payload for bucket in new], timeout=FETCH_S)
        except ray.exceptions.GetTimeoutError as error:
            raise BrokenEngineError(
                f"weights version {manifest.version} do not reach an engine",
                got=f"not all of {len(new)} buckets there after {FETCH_S:g} s",
                remedy="the fleet replaces it; if every replacement fails alike, suspect network or object store",
            ) from error
        arrived = {
            bucket.payload: _check(bucket, arrays, manifest.version)
            for bucket, arrays in zip(new, payloads, strict=True)
        }
        tensors = [pair for bucket in buckets for pair in (arrived | self._fixed)[bucket.payload]]
        unchanged = frozenset(entry.name for bucket in buckets if bucket not in new for entry in bucket.entries)
        self._fixed |= {bucket.payload: arrived[bucket.payload] for bucket in new if bucket.kind == "fixed"}
        return Arrived(tensors, unchanged)


def _check(bucket: WeightBucket, arrays: Any, version: int) -> Tensors:
    if (found := checksum(arrays)) != bucket.xxh3:
        raise EngineError(
            f"the bucket from {bucket.entries[0].name} on of weights version {version} arrived damaged",
            got=f"xxh3 {found:016x}, published as {bucket.xxh3:016x}",
            remedy="publish the version again; if it recurs, suspect the node's memory or object store",
        )
    flat = [view_as_tensor(array) for array in arrays]
    return [(entry.name, _tensor(entry, flat[entry.index])) for entry in bucket.entries]


def _tensor(entry: WeightEntry, flat: torch.Tensor) -> torch.Tensor:
    """An entry out of the (nbytes,) bytes of its array."""
    import torch

    dtype = getattr(torch, entry.dtype)
    stop = entry.start + math.prod(entry.shape) * dtype.itemsize
    return flat[entry.start : stop].view(dtype).view(entry.shape)


def view_as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor over the memory of `array`, which may be read-only: whoever gets the tensor must not write."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
