"""Weights as bytes: whole, bit for bit, under every name, in buckets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.types import WeightEntry
from learner.model.load import freeze_vision_tower
from learner.trainer.weights import Meta, NcclSender, WeightSource, pack_bucket
from rollout.weights import cut_entry
from tests.helpers import tiny

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def source(module: torch.nn.Module, bucket_bytes: int) -> WeightSource:
    return WeightSource(module, gathered=lambda tensors: nullcontext(), bucket_bytes=bucket_bytes)


def meta(name: str, tensor: Tensor) -> Meta:
    return Meta(name, tensor.dtype, tuple(tensor.shape))


@pytest.mark.parametrize("bucket_bytes", [1, 5_000, 1_000_000_000])
@pytest.mark.parametrize("frozen", [False, True])
def test_batches_hold_every_name_once_and_one_kind_of_tensor(bucket_bytes: int, frozen: bool) -> None:
    model = tiny.model()
    if frozen:
        freeze_vision_tower(model)
        model.model.language_model.norm.requires_grad_(False)
    batches = source(model, bucket_bytes).batches
    names = {batch.kind: [] for batch in batches}  # type: dict[str, list[str]]
    for batch in batches:
        names[batch.kind] += [meta.name for meta in batch.metas]
        distinct = [meta.nbytes for meta in batch.metas if meta.name != HEAD]
        assert sum(distinct) <= bucket_bytes or len(distinct) == 1
    every = [name for name in model.state_dict() if name != HEAD]
    visual = {name for name in every if ".visual." in name} if frozen else set()
    norm = {"model.language_model.norm.weight"} if frozen else set()
    assert set(names.get("towers", [])) == visual
    assert set(names.get("fixed", [])) == norm
    assert [name for name in names["changing"] if name != HEAD] == [n for n in every if n not in visual | norm]
    assert names["changing"][names["changing"].index(EMBEDDING) + 1] == HEAD, "tied tensors go side by side"


def test_iterating_gives_what_metadata_declares() -> None:
    model = tiny.model()
    weights = source(model, 5_000)
    pairs = list(weights)
    assert [meta(name, tensor) for name, tensor in pairs] == weights.metadata()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in pairs)


def test_bytes_are_the_tensors_bit_for_bit_and_tied_ones_travel_once() -> None:
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "full": torch.randn(7),
        "turned": torch.randn(4, 6).T,
        "scalar": torch.tensor(2.5),
    }
    tensors["tied"] = tensors["full"].detach()
    entries, arrays = pack_bucket([meta(*pair) for pair in tensors.items()], list(tensors.values()))

    def read(entry: WeightEntry) -> Tensor:
        return torch.from_numpy(arrays[entry.index]).view(getattr(torch, entry.dtype)).view(entry.shape)

    assert all(torch.equal(read(entry), tensors[entry.name]) for entry in entries)
    assert [entry.dtype for entry in entries] == ["bfloat16", *["float32"] * 4]
    assert len(arrays) == 4
    assert np.shares_memory(arrays[1], tensors["full"].numpy()), "nothing is copied before the store does"


def test_what_lies_side_by_side_travels_as_one_array() -> None:
    """As DeepSpeed lays parameters out; a gap, another type or another memory begins a new array."""
    flat, other = torch.randn(40), torch.randn(6)
    tensors = {
        "first": flat[0:6].view(2, 3),
        "second": flat[6:10],
        "tied": flat[0:6].view(2, 3),
        "third": flat[10:12],
        "bits": flat.view(torch.int32)[12:14],
        "far": flat[20:22],
        "other": other,
    }
    entries, arrays = pack_bucket([meta(*pair) for pair in tensors.items()], list(tensors.values()))
    assert [(entry.index, entry.start) for entry in entries] == [
        (0, 0),
        (0, 24),
        (0, 0),
        (0, 40),
        (1, 0),
        (2, 0),
        (3, 0),
    ]
    assert [len(array) for array in arrays] == [48, 8, 8, 24]
    manifest = {entry.name: cut_entry(entry, torch.from_numpy(arrays[entry.index])) for entry in entries}
    assert all(torch.equal(manifest[name], tensor) for name, tensor in tensors.items())
    assert np.shares_memory(arrays[0], flat.numpy()), "nothing is copied before the store does"


def test_a_tensor_that_was_not_gathered_is_never_sent() -> None:
    """Fault 7: under ZeRO-3 an ungathered parameter is an empty tensor."""
    with pytest.raises(RuntimeError, match="up_proj was not gathered"):
        pack_bucket([Meta("up_proj", torch.float32, (4, 4))], [torch.empty(0)])


class _Receiver:
    """The engines' end of vLLM's packed NCCL transfer, without an engine."""

    def receive(self, info: dict[str, Any], metas: list[Meta]) -> dict[str, Tensor]:
        from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_consumer

        got: dict[str, Tensor] = {}
        group = stateless_init_process_group(
            info["master_address"], info["master_port"], info["rank_offset"], info["world_size"], torch.device("cuda:0")
        )
        packed_nccl_broadcast_consumer(
            iterator=iter([(entry.name, (list(entry.shape), entry.dtype)) for entry in metas]),
            group=group,
            src=0,
            post_unpack_func=lambda pairs: got.update({name: tensor.cpu() for name, tensor in pairs}),
            buffer_size_bytes=info["packed_buffer_size_bytes"],
        )
        return got


class _Sender:
    def send(self, address: str, port: int, bucket_bytes: int) -> None:
        sender = NcclSender(source(tiny.model().cuda(), bucket_bytes), rank=0, bucket_bytes=bucket_bytes)
        assert sender.join(address, port, 2, 60)
        assert sender.broadcast(60)


class _StuckEngine:
    """vLLM's end of a transfer whose other end is dead: it sends one tensor, then waits until it is aborted."""

    source: Any = None

    def __init__(self) -> None:
        self.aborted = threading.Event()

    @classmethod
    def trainer_init(cls, info: Any, *, client: Any, source: Any) -> _StuckEngine:
        if info.world_size > 2:
            threading.Event().wait(30)
        cls.source = source
        return cls()

    def send_weights(self) -> None:
        next(iter(self.source))
        assert self.aborted.wait(30)
        raise RuntimeError("NCCL error: the communicator was aborted")

    def shutdown(self) -> None:
        self.aborted.set()


def test_an_engine_that_is_dead_holds_up_a_broadcast_for_the_limit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """F17. The other ranks gather to the end meanwhile, so rank 0 does too: nothing is left to iterate."""
    from vllm.distributed.weight_transfer import nccl_engine

    monkeypatch.setattr(nccl_engine, "NCCLTrainerWeightTransferEngine", _StuckEngine)
    gathered: list[str] = []
    whole = source(tiny.model(), 20_000)

    class Counted:
        metadata = whole.metadata

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in whole:
                gathered.append(name)
                yield name, tensor

    counted: Any = Counted()
    sender = NcclSender(counted, rank=0, bucket_bytes=20_000)
    began = time.monotonic()
    assert not sender.join("127.0.0.1", 1, 3, 0.2), "an engine did not come"
    assert sender.join("127.0.0.1", 1, 2, 20)
    assert not sender.broadcast(0.2)
    assert time.monotonic() - began < 20
    assert gathered == [meta.name for meta in whole.metadata()]
    assert sender.join("127.0.0.1", 1, 2, 20), "another group may follow"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_nccl_carries_the_full_set(ray_session: None) -> None:
    import ray

    weights = source(tiny.model(), 20_000)
    info = {
        "master_address": "127.0.0.1",
        "master_port": 29577,
        "rank_offset": 1,
        "world_size": 2,
        "packed_buffer_size_bytes": 20_000,
    }
    on_gpu: Any = ray.remote(num_gpus=1)
    receiver, sender = on_gpu(_Receiver).remote(), on_gpu(_Sender).remote()
    sent = sender.send.remote("127.0.0.1", 29577, 20_000)
    got: dict[str, Tensor] = ray.get(receiver.receive.remote(info, weights.metadata()), timeout=120)
    ray.get(sent, timeout=120)
    assert list(got) == [entry.name for entry in weights.metadata()]
    assert all(torch.equal(got[name], tensor) for name, tensor in weights)
