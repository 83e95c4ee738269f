"""Receiving half of weight transfer: verified bytes out of the object store, as tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from common.checksum import checksum, combine
from common.errors import BrokenEngineError, EngineError
from common.types import WeightBucket, WeightEntry, WeightManifest

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

Tensors = list[tuple[str, "torch.Tensor"]]
FETCH_TIMEOUT_S = 600.0


class ReceivedWeights(NamedTuple):
    """Weights as they lie in the object store."""

    tensors: Tensors
    unchanged: frozenset[str]  # names of those that are the very objects of an earlier manifest
    checksum: str | None = None  # of all buckets as they arrived: now or, of those that an engine has, before


class WeightReceiver:
    """Fetches and checks the buckets of an engine; one that comes again as the same object is not fetched again."""

    def __init__(self) -> None:
        self._fixed: dict[Any, Tensors] = {}  # by ObjectRef; they alias the store's memory
        self._found: dict[str, int] = {}  # checksum of each bucket that arrived last, by the first name in it

    def receive(self, manifest: WeightManifest, *, towers: bool) -> ReceivedWeights:
        """Return the tensors of the manifest, over the object store's memory.

        All buckets are fetched at once, so that one is on its way while another is checked.

        Args:
            towers: also those of the vision tower, which an engine that has them need not get again.

        Raises:
            EngineError: a bucket's checksum is not the manifest's.
            BrokenEngineError: the bytes do not come.
        """
        import ray

        wanted = [bucket for bucket in manifest.buckets if towers or bucket.kind != "towers"]
        new = [bucket for bucket in wanted if bucket.payload not in self._fixed]
        try:
            payloads = ray.get([bucket.payload for bucket in new], timeout=FETCH_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as error:
            raise BrokenEngineError(
                f"weights version {manifest.version} do not reach an engine",
                got=f"not all of {len(new)} buckets there after {FETCH_TIMEOUT_S:g} s",
                remedy="the fleet replaces it; if every replacement fails alike, suspect network or object store",
            ) from error

        # In the manifest's order, whether a bucket was fetched now or before.
        fetched = {
            bucket.payload: self._check(bucket, arrays, manifest.version)
            for bucket, arrays in zip(new, payloads, strict=True)
        }
        tensors = [pair for bucket in wanted for pair in (fetched | self._fixed)[bucket.payload]]
        unchanged = frozenset(entry.name for bucket in wanted if bucket not in new for entry in bucket.entries)

        self._fixed |= {bucket.payload: fetched[bucket.payload] for bucket in new if bucket.kind == "fixed"}
        found = combine(self._found.get(bucket.entries[0].name, 0) for bucket in manifest.buckets)
        return ReceivedWeights(tensors, unchanged, found)

    def _check(self, bucket: WeightBucket, arrays: Any, version: int) -> Tensors:
        """Return the tensors of a bucket. Raises EngineError when its bytes are not those that were published."""
        if (found := checksum(arrays)) != bucket.xxh3:
            raise EngineError(
                f"the bucket from {bucket.entries[0].name} on of weights version {version} arrived damaged",
                got=f"xxh3 {found:016x}, published as {bucket.xxh3:016x}",
                remedy="publish the version again; if it recurs, suspect the node's memory or object store",
            )
        self._found[bucket.entries[0].name] = found
        flat = [view_as_tensor(array) for array in arrays]
        return [(entry.name, cut_entry(entry, flat[entry.index])) for entry in bucket.entries]


def cut_entry(entry: WeightEntry, flat: torch.Tensor) -> torch.Tensor:
    """Return an entry out of the (nbytes,) bytes of its array: see the example of `WeightEntry`."""
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
