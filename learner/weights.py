"""Sending half of weight transfer: the full set of weights, under their Hugging Face names, out of the ranks.

Two senders, one seam: `publish` on every rank makes a version, rank 0's manifest describes it. Bytes lie in Ray's
object store, or go by NCCL when `broadcast` is called beside the engines' receive.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from common.types import WeightBucket, WeightEntry, WeightManifest

ALIGN = 64  # bytes: a tensor can be viewed in place whatever stands before it


class Meta(NamedTuple):
    """A tensor as it will be sent."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class WeightSource:
    """Every tensor of a model that ZeRO-3 may have partitioned, whole, in `state_dict` order.

    That order names a tied head a second time: an engine keeps its own copy of it. Iterating is a collective: all ranks
    do it alike, each bucket gathered at once.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        gathered: Callable[[list[Tensor]], AbstractContextManager[Any]],
        bucket_bytes: int,
    ) -> None:
        self._tensors: dict[str, Tensor] = module.state_dict(keep_vars=True)
        self._gathered = gathered
        self._bucket_bytes = bucket_bytes

    def metadata(self) -> list[Meta]:
        """What iterating yields, in order, without gathering anything."""
        return [
            Meta(name, tensor.dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))
            for name, tensor in self._tensors.items()
        ]

    def buckets(self) -> list[list[Meta]]:
        """Runs of at most `bucket_bytes`; a larger tensor stands alone."""
        buckets: list[list[Meta]] = []
        size = 0
        for meta in self.metadata():
            if not buckets or size + meta.nbytes > self._bucket_bytes:
                buckets.append([])
                size = 0
            buckets[-1].append(meta)
            size += meta.nbytes
        return buckets

    def bucket(self, metas: Sequence[Meta]) -> AbstractContextManager[Any]:
        """Within it the tensors of `metas` are whole."""
        return self._gathered([self._tensors[meta.name] for meta in metas])

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for metas in self.buckets():
            with self.bucket(metas):
                copies = [(meta.name, self.tensor(meta.name).clone()) for meta in metas]
            yield from copies


class WeightSender(Protocol):
    """One per rank. Rank 0's `publish` returns the manifest, the others' None."""

    def publish(self, version: int) -> WeightManifest | None: ...


class ObjectStoreSender:
    """Buckets of bytes in Ray's object store: readable in place by every engine of a node, by any number of engines,
    at any time while the manifest lives."""

    def __init__(self, source: WeightSource, *, rank: int, vision_unchanged: bool) -> None:
        self._source, self._rank, self._vision_unchanged = source, rank, vision_unchanged

    def publish(self, version: int) -> WeightManifest | None:
        import ray

        buckets = []
        for metas in self._source.buckets():
            with self._source.bucket(metas):
                if self._rank == 0:
                    entries, payload = pack_bucket(metas, [self._source.tensor(meta.name) for meta in metas])
                    crc32 = zlib.crc32(payload.data)
                    buckets.append(WeightBucket(entries=entries, crc32=crc32, payload=ray.put(payload)))
        if self._rank:
            return None
        return WeightManifest(version=version, buckets=tuple(buckets), vision_unchanged=self._vision_unchanged)


def pack_bucket(
    metas: Sequence[Meta], tensors: Sequence[Tensor]
) -> tuple[tuple[WeightEntry, ...], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Table and (nbytes,) uint8 of whole tensors, bit for bit: bfloat16 stays bfloat16."""
    entries, size = _table(metas)
    payload = torch.zeros(size, dtype=torch.uint8)
    for entry, tensor in zip(entries, tensors, strict=True):
        if tuple(tensor.shape) != entry.shape:  # fault 7 of the seed: a partitioned tensor is empty
            raise RuntimeError(f"{entry.name} was not gathered: {tuple(tensor.shape)} instead of {entry.shape}")
        payload[entry.offset : entry.offset + entry.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
    return entries, payload.numpy()


def _table(metas: Sequence[Meta]) -> tuple[tuple[WeightEntry, ...], int]:
    """Where each tensor lies, and the bytes all of them take."""
    entries, offset = [], 0
    for meta in metas:
        dtype = str(meta.dtype).removeprefix("torch.")
        entries.append(WeightEntry(name=meta.name, dtype=dtype, shape=meta.shape, offset=offset, nbytes=meta.nbytes))
        offset += -(-meta.nbytes // ALIGN) * ALIGN
    return tuple(entries), offset


class NcclSender:
    """vLLM's own packed NCCL weight transfer, trainer side: rank 0 broadcasts, the others only help to gather.

    `publish` describes a version, `join` and `broadcast` meet the engines' `init_weight_transfer_engine` and
    `update_weights`, so each must run while the fleet makes its engines do theirs.
    """

    def __init__(self, source: WeightSource, *, rank: int, vision_unchanged: bool, bucket_bytes: int) -> None:
        self._source, self._rank, self._vision_unchanged = source, rank, vision_unchanged
        self._bucket_bytes = bucket_bytes
        self._engine: Any = None

    def join(self, address: str, port: int, world_size: int) -> None:
        """Open the group of rank 0 and all engine workers (`world_size` in all); blocks until they are in it."""
        # The one place outside rollout/ that reads vLLM: its wire format has two ends, and this is the other one.
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        info = NCCLTrainerInitInfo(
            rank=self._rank,
            master_address=address,
            master_port=port,
            world_size=world_size,
            packed=True,
            packed_buffer_size_bytes=self._bucket_bytes,
        )
        if self._engine is not None:
            self._engine.shutdown()
        source: Any = self._source  # what vLLM's WeightSource asks of it, without its base class
        self._engine = NCCLTrainerWeightTransferEngine.trainer_init(info, client=_FleetDoesIt(), source=source)

    def publish(self, version: int) -> WeightManifest | None:
        if self._rank:
            return None
        entries, _ = _table(self._source.metadata())
        bucket = WeightBucket(entries=entries, crc32=0, payload=None)  # NCCL checks what it carries
        return WeightManifest(version=version, buckets=(bucket,), vision_unchanged=self._vision_unchanged)

    def broadcast(self) -> None:
        """Send the weights as they are now; returns when every engine has them."""
        self._engine.send_weights()


class _FleetDoesIt:
    """vLLM's trainer wants to command the engines itself; here the fleet owns them."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...
