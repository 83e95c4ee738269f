"""The sending half of weight transfer: the full set of weights leaves the ranks under its Hugging Face names.

The bytes lie in Ray's object store, bucket by bucket: any number of engines can read them, at any time while somebody
holds the manifest, in place on the same node. Or they go by NCCL, when `broadcast` runs at the same time as the
engines' receive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.checksum import checksum
from common.types import BucketKind, WeightBucket, WeightEntry, WeightManifest
from learner.model.load import vision_tower_names
from learner.model.lora import list_factors, merge, remove_adapters

Arrays = list[np.ndarray[Any, np.dtype[np.uint8]]]


class Meta(NamedTuple):
    """The name, type and shape of a tensor that will be sent."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tensors that are gathered and sent together."""

    kind: BucketKind
    metas: tuple[Meta, ...]  # tied ones side by side


class WeightSource:
    """All tensors of a model, made whole where ZeRO-3 split them, with their adapters merged.

    They have the names of a model without adapters. A tied head comes a second time: an engine keeps its own copy.
    Iterating is a collective: all ranks must do it, each batch is gathered at once.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        gathered: Callable[[list[Tensor]], AbstractContextManager[Any]],
        bucket_bytes: int,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the names and sort them into batches.

        Args:
            gathered: makes the context in which tensors are whole; see `zero.make_gatherer`.
            bucket_bytes: most bytes of a batch.
            adapters: LoRA layers by name, as `learner.model.lora.find_adapters` returns them.
        """
        self._adapters = dict(adapters or {})
        self._tensors = remove_adapters(module.state_dict(keep_vars=True))
        self._gathered = gathered
        self._towers = vision_tower_names(module)
        self.towers_fixed = not any(self._changes(name) for name in self._towers)
        self.batches = self._batches(bucket_bytes)

    def metadata(self) -> list[Meta]:
        """List what iterating yields, in order, without gathering anything."""
        return [meta for batch in self.batches for meta in batch.metas]

    def whole(self, metas: Sequence[Meta]) -> AbstractContextManager[Any]:
        """Make the context in which `tensor` returns the tensors of `metas` whole."""
        parts = [self._tensors[meta.name] for meta in metas]
        for meta in metas:
            if layer := self._adapters.get(meta.name):
                parts += list_factors(layer)
        return self._gathered(parts)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, its adapter merged; whole inside `whole` only."""
        layer = self._adapters.get(name)
        return self._tensors[name].detach() if layer is None else merge(self._tensors[name], layer)

    def pack(self, number: int, *, rank: int) -> tuple[WeightBucket | None, Arrays | None]:
        """Gather a batch. Return it from rank 0: its table, and its bytes; nothing from the others. A collective."""
        batch = self.batches[number]
        with self.whole(batch.metas):
            if rank:
                return None, None
            entries, arrays = pack_bucket(batch.metas, [self.tensor(meta.name) for meta in batch.metas])
            return WeightBucket(entries=entries, xxh3=checksum(arrays), payload=None, kind=batch.kind), arrays

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for batch in self.batches:
            with self.whole(batch.metas):
                copies = [(meta.name, self.tensor(meta.name).clone()) for meta in batch.metas]
            yield from copies

    def _changes(self, name: str) -> bool:
        return self._tensors[name].requires_grad or name in self._adapters

    def _kind(self, name: str) -> BucketKind:
        if self._changes(name):
            return "changing"
        return "towers" if name in self._towers and self.towers_fixed else "fixed"

    def _batches(self, bucket_bytes: int) -> list[Batch]:
        """Sort all tensors into batches of one kind and at most `bucket_bytes`; a larger tensor stands alone."""
        tied: dict[int, list[Meta]] = {}
        for name, tensor in self._tensors.items():
            meta = Meta(name, tensor.dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))
            tied.setdefault(id(tensor), []).append(meta)
        kinds: dict[BucketKind, list[list[Meta]]] = {}
        for metas in tied.values():
            kinds.setdefault(self._kind(metas[0].name), []).append(metas)
        return [
            Batch(kind=kind, metas=tuple(run))
            for kind, parts in kinds.items()
            for run in _split_runs(parts, bucket_bytes)
        ]


def _split_runs(parts: Sequence[list[Meta]], limit: int) -> Iterator[list[Meta]]:
    """Split tensors into runs of at most `limit` bytes; tied ones, which share theirs, stay together."""
    run: list[Meta] = []
    size = 0
    for part in parts:
        if run and size + part[0].nbytes > limit:
            yield run
            run, size = [], 0
        run, size = run + part, size + part[0].nbytes
    yield run


def pack_bucket(metas: Sequence[Meta], tensors: Sequence[Tensor]) -> tuple[tuple[WeightEntry, ...], Arrays]:
    """Return the table and the bytes of whole tensors, bit for bit, not copied where contiguous and on the CPU.

    Tied tensors share their bytes. Tensors that lie side by side, as parameters do that DeepSpeed has flattened, become
    one array, which Ray copies several times as fast as its parts.
    """
    runs: list[_Run] = []
    at: dict[Any, tuple[int, int]] = {}
    entries = []
    for meta, tensor in zip(metas, tensors, strict=True):
        if tuple(tensor.shape) != meta.shape:  # fault 7: a partitioned tensor is empty
            raise RuntimeError(f"{meta.name} was not gathered: {tuple(tensor.shape)} instead of {meta.shape}")
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in at:
            flat = tensor.cpu().contiguous().view(-1)
            start = runs[-1].grow(flat) if runs else None
            if start is None:
                runs.append(_Run(flat))
            at[key] = (len(runs) - 1, start or 0)
        entries.append(_describe(meta, *at[key]))
    return tuple(entries), [run.array() for run in runs]


class _Run:
    """Tensors of one type that lie side by side in one piece of memory."""

    def __init__(self, first: Tensor) -> None:
        self._first, self._nbytes = first, first.nbytes

    def grow(self, tensor: Tensor) -> int | None:
        """Add `tensor` at the end and return its first byte; None if it does not lie there."""
        first, nbytes = self._first, self._nbytes
        same = tensor.dtype == first.dtype and (
            tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        )
        if not same or tensor.data_ptr() != first.data_ptr() + nbytes:
            return None
        self._nbytes += tensor.nbytes
        return nbytes

    def array(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        size = self._nbytes // self._first.itemsize
        whole = self._first.as_strided((size,), (1,))
        return whole.view(torch.uint8).numpy()


def _describe(meta: Meta, index: int, start: int) -> WeightEntry:
    dtype = str(meta.dtype).removeprefix("torch.")
    return WeightEntry(name=meta.name, dtype=dtype, shape=meta.shape, index=index, start=start)


class WholeSource:
    """A source whose iteration can be taken to its end after whoever began it gave up."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._rest: Iterator[tuple[str, Tensor]] = iter(())

    def metadata(self) -> list[Meta]:
        """List what iterating yields, in order."""
        return self._source.metadata()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._rest = iter(self._source)
        return self._rest

    def finish(self) -> None:
        """Iterate over what is left."""
        for _ in self._rest:
            pass


class NcclSender:
    """The trainer's side of vLLM's packed NCCL weight transfer: rank 0 broadcasts, the others only help to gather.

    `join` waits for the engines' `init_weight_transfer_engine`, and `broadcast` for their `update_weights`: the fleet
    must call those at the same time. NCCL waits without end for an engine that is dead: after a limit the group is
    aborted, which frees the GPU, and False comes back. Another `join` may follow.
    """

    def __init__(self, source: WeightSource, *, rank: int, bucket_bytes: int) -> None:
        self._source, self._rank, self._bucket_bytes = source, rank, bucket_bytes
        self._whole = WholeSource(source)
        self._engine: Any = None

    def join(self, address: str, port: int, world_size: int, limit_s: float) -> bool:
        """Open the NCCL group of rank 0 and all engine workers, `world_size` in all; return when all are in it.

        Returns False where they are not within `limit_s` seconds.
        """
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
        self.leave()
        source: Any = self._whole  # what vLLM's WeightSource asks of it, without its base class
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        made: list[Any] = []

        def enter() -> None:
            if device is not None:
                torch.cuda.set_device(device)
            made.append(NCCLTrainerWeightTransferEngine.trainer_init(info, client=NoOpEngineClient(), source=source))

        waiting = threading.Thread(target=enter, name="join of the NCCL group", daemon=True)  # may wait without end
        waiting.start()
        waiting.join(limit_s)
        self._engine = made[0] if made else None
        return self._engine is not None

    def leave(self) -> None:
        """Abort the group, whatever it waits for."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()

    def announce(self, version: int) -> WeightManifest | None:
        """Return, from rank 0, what `broadcast` will send as this version."""
        if self._rank:
            return None
        entries = tuple(_describe(meta, number, 0) for number, meta in enumerate(self._source.metadata()))
        bucket = WeightBucket(entries=entries, xxh3=0, payload=None, kind="changing")  # NCCL checks what it carries
        return WeightManifest(version=version, buckets=(bucket,), vision_unchanged=self._source.towers_fixed)

    def broadcast(self, limit_s: float) -> bool:
        """Send the weights as they are now; return when every engine has them, False where they do not in `limit_s`."""
        late = threading.Event()

        def abort() -> None:
            late.set()
            self.leave()

        timer = threading.Timer(limit_s, abort)
        timer.daemon = True
        timer.start()
        try:
            self._engine.send_weights()
        except Exception:
            if not late.is_set():
                raise
            self._whole.finish()  # the other ranks gather to the end too
        finally:
            timer.cancel()
        return not late.is_set()


class NoOpEngineClient:
    """vLLM's trainer wants to command the engines itself; here the fleet owns them."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...
