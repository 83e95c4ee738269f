"""One data-parallel rank: a Ray actor with the policy in DeepSpeed and the frozen reference beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from common.config.schema import Config
from common.lean_imports import import_transformers, leave_out_compiler, pause_collector, settle_collector
from common.models.pictures import PictureReader
from common.object_store import fetch_features
from common.process import ThreadReport, describe_threads, end_with_raylet
from common.recorder import Recorder
from common.shared_folder import SharedFolder, find_local
from common.storage.output import (
    Place,
    WriteReport,
)
from common.telemetry.actor import ActorTelemetry
from common.telemetry.reporting import Reporting
from common.types import Images, WeightBucket, WeightManifest
from learner.model.head import ScoringSpec
from learner.model.load import export_model, freeze_vision_tower, identify_base, load_model
from learner.model.logprobs import packed_logprobs
from learner.model.lora import add_adapters, export_adapter
from learner.model.reference import MovingReference
from learner.model.vision_features import compute_features
from learner.objective.records import Coefficients
from learner.trainer.learning_step import Count, LearningStep, OpenStep
from learner.trainer.rank_files import copy_rank, export_rank, load_rank, restore_rank, save_rank
from learner.trainer.rank_pack import RankPack, open_images
from learner.trainer.recovery.watch import RankInfo
from learner.trainer.rng import make_reproducible
from learner.trainer.stats import RankStats
from learner.trainer.weights import Arrays, NcclSender, WeightSource


class LearnerRank:
    """Every public method but `open_store`, `beat`, `describe_threads`, `free_port` and `checkpoint_bytes` is a
    collective: all ranks run it, in the same order."""

    def __init__(
        self,
        config: Config,
        *,
        rank: int,
        model_path: str | SharedFolder,
        banned: tuple[int, ...],
        steps: int,
        tower_runs: bool,
        reporting: Reporting | None = None,
    ) -> None:
        end_with_raylet()
        self._config, self._rank, self._steps = config, rank, steps
        self._shared_model = model_path
        self._tower_runs = tower_runs
        self._recorder = Recorder()
        self._packs = Count()
        self._spec = ScoringSpec.of(config, banned=banned)
        self._telemetry = ActorTelemetry(reporting, f"rank-{rank}")

    def open_store(self) -> tuple[str, int]:
        """Open the store where the ranks meet and return its address and port.

        It stays open: a port that was only found free could be taken by the time all ranks come.
        """
        address = _own_address()
        listener = socket.create_server((address, 0))  # torch itself would listen on every interface
        port: int = listener.getsockname()[1]
        self._store = TCPStore(
            address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        return address, port

    def free_port(self) -> tuple[str, int]:
        """Return the address of this node and a port that is free now."""
        with socket.socket() as probe:
            probe.bind((_own_address(), 0))
            return _own_address(), probe.getsockname()[1]

    def beat(self) -> int:
        """Return how many packs it has built, which an answer of a rank that hangs does not change."""
        return self._packs.count

    def describe_threads(self) -> ThreadReport:
        """Return where every thread of this process is."""
        return describe_threads()

    def start(self, store: tuple[str, int]) -> RankInfo:
        """Join the other ranks at the store, load the model, partition it. Return where this rank runs."""
        import ray

        if self._config.cluster.device == "cpu":  # on a GPU flex attention is compiled
            leave_out_compiler()
        with pause_collector():
            import_transformers()
            self._start(store)
        settle_collector()
        self._telemetry.log("up", step=None)
        kinds = tuple(batch.kind for batch in self._source.batches)
        return RankInfo(
            pid=os.getpid(),
            address=_own_address(),
            node=ray.get_runtime_context().get_node_id(),
            buckets=kinds,
            vision_unchanged=self._source.towers_fixed,
        )

    def _start(self, store: tuple[str, int]) -> None:
        from learner.trainer import zero

        config = self._config

        make_reproducible(config)
        if self._rank:
            self._store = TCPStore(*store, is_master=False)
        self._device = zero.join_ranks(config, rank=self._rank, store=self._store, address=_own_address())

        self._model_path = find_local(self._shared_model, timeout_s=config.learner.start_timeout_s)
        self._pictures = PictureReader(config.model.model_copy(update={"path": self._model_path}), config.data)
        policy = self._load_policy()
        self._base = identify_base(policy, config)
        self._adapters = add_adapters(policy, config.lora) if config.lora.rank else {}
        self._engine = (
            zero.build_training_engine(policy, config) if self._steps else zero.build_scoring_engine(policy, config)
        )
        reference = self._make_reference()
        self._moving = self._follow_policy(reference)
        self._learning = LearningStep(
            config=config,
            engine=self._engine,
            reference=reference,
            adapters=self._adapters,
            spec=self._spec,
            steps=self._steps,
            tower_runs=self._tower_runs,
            packs=self._packs,
            open_images=partial(open_images, pictures=self._pictures, timeout_s=config.learner.step_timeout_s),
        )

        self._gathered = zero.make_gatherer(config)
        self._source = WeightSource(
            self._engine.module,
            gathered=self._gathered,
            bucket_bytes=config.weights.bucket_mb * 2**20,
            adapters=self._adapters,
        )
        self._sender = NcclSender(self._source, rank=self._rank, bucket_bytes=config.weights.bucket_mb * 2**20)

    def begin_step(self, coefficients: Coefficients, *, at: int) -> None:
        """Begin a step; see `OpenStep`."""
        self._step = OpenStep(self._learning, coefficients, at=at)

    def learn(self, packs: Sequence[RankPack], *, last: bool) -> None:
        """Learn from packs of the step; see `OpenStep.learn`."""
        with self._telemetry.busy:
            self._step.learn(packs, last=last)

    def finish_step(self, correction: float) -> RankStats:
        """Take the optimizer steps; see `OpenStep.finish`."""
        with self._telemetry.busy:
            stats = self._step.finish(correction)
            if self._moving and stats.updates:  # a skipped step makes no new version
                self._moving.follow(self._step.at + 1)
        self._telemetry.log("learned", step=self._step.at, updates=stats.updates)
        return stats

    def logprobs(self, packs: Sequence[RankPack], *, cut: bool = True) -> list[list[float]]:
        """Return the policy's log-prob of every completion token, one flat list a pack.

        Args:
            cut: apply top-k and top-p, as engines do for sampled completions.
        """
        spec = self._spec if cut else self._spec.uncut()
        with torch.no_grad(), self._telemetry.busy:
            return [packed_logprobs(self._engine, self._learning.build(pack), spec).logp.tolist() for pack in packs]

    def measure_kl(self, packs: Sequence[RankPack]) -> list[list[float]]:
        """Return the KL of every completion token to the reference, one flat list a pack."""
        return self._learning.measure_kl(packs)

    def vision_features(self, images: Sequence[Images]) -> tuple[Any, ...]:
        """Return digest and bytes of the vision tower's features of each prompt's pictures, and then those features."""
        found = fetch_features(images, timeout_s=self._config.learner.step_timeout_s)
        opened = (pixels for one in found if (pixels := self._pictures.open(one)))
        made = compute_features(self._engine.module, opened)
        return [(one.digest, one.nbytes) for one in made], *made

    def pack_weights(self, number: int) -> tuple[WeightBucket | None, Arrays | None]:
        """Gather a bucket of the weights; return it and its bytes from rank 0. See `WeightSource.pack`."""
        return self._source.pack(number, rank=self._rank)

    def announce(self, version: int) -> WeightManifest | None:
        """Return, from rank 0, the manifest of weights that `broadcast` will send."""
        return self._sender.announce(version)

    def join_engines(self, address: str, port: int, world_size: int, limit_s: float) -> bool:
        """Open the NCCL group with the engines; see NcclSender.join."""
        return self._sender.join(address, port, world_size, limit_s)

    def broadcast(self, limit_s: float) -> bool:
        """Send the weights to the engines; see NcclSender.broadcast."""
        return self._sender.broadcast(limit_s)

    def start_profile(self) -> None:
        """Record what this process does from now on."""
        self._recorder.start()

    def stop_profile(self, place: Place) -> WriteReport:
        """Write the record as rank-N."""
        return self._recorder.stop(place, f"rank-{self._rank}")

    def save(self, place: Place) -> WriteReport:
        """Write this rank's share of a checkpoint to `place`; see `learner.trainer.rank_files`."""
        return save_rank(self._engine, place, rank=self._rank, base=self._base, moving=self._moving)

    def checkpoint_bytes(self) -> int:
        """Estimate the bytes that all ranks together write at `save`."""
        from learner.trainer import zero

        partitions = self._config.learner.ranks if self._config.learner.zero_stage == 3 else 1
        return zero.checkpoint_bytes(self._engine) + (self._moving.nbytes * partitions if self._moving else 0)

    def load(self, place: Place, reports: Sequence[WriteReport] = ()) -> None:
        """Continue exactly where `save` was called, in this process or another; see `learner.trainer.rank_files`."""
        load_rank(self._engine, place, reports, rank=self._rank, base=self._base, moving=self._moving)

    def copy_state(self) -> tuple[None, Mapping[str, Any]]:
        """Return nothing, for those who wait, and what `restore_state` needs; see `learner.trainer.rank_files`."""
        return None, copy_rank(self._engine, rank=self._rank, moving=self._moving)

    def restore_state(self, *copies: Mapping[str, Any]) -> None:
        """Continue where `copy_state` was called in another process, from this rank's copy and perhaps the first's."""
        restore_rank(self._engine, copies, rank=self._rank, moving=self._moving)

    def export(self, place: Place) -> WriteReport:
        """Write the whole model in Hugging Face layout, or the adapter alone, from rank 0; all ranks help to gather."""
        adapter = self._config.checkpoint.export == "adapter"
        return export_rank(self._export_adapter if adapter else self._export_model, place, rank=self._rank)

    def _export_model(self, folder: Path) -> None:
        whole = {}
        for name, tensor in self._source:
            if self._rank == 0:
                whole[name] = tensor.cpu()
        if self._rank == 0:
            export_model(whole, self._model_path, self._config, folder)

    def _export_adapter(self, folder: Path) -> None:
        module = self._engine.module
        tensors = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if tensor.requires_grad}
        with self._gathered(list(tensors.values())):
            if self._rank == 0:
                export_adapter(tensors, module, self._config.lora, self._config.model.path, folder)

    def _load_policy(self) -> Any:
        model = load_model(self._model_path, self._config)
        if self._config.model.freeze_vision:
            freeze_vision_tower(model)
        if self._config.model.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()

    def _make_reference(self) -> Any:
        """Return the policy as it was at the start: a second model, or the policy itself, whose adapters are off."""
        from learner.trainer import zero

        if not self._config.learner.beta:
            return None
        if self._adapters:
            return self._engine
        return zero.build_reference(load_model(self._model_path, self._config), self._config, self._device)

    def _follow_policy(self, reference: Any) -> MovingReference | None:
        """Return what moves the reference after the policy; None where it stays as it is."""
        from learner.trainer import zero

        learner = self._config.learner
        if not self._steps or (learner.reference_reset_every is None and learner.reference_ema is None):
            return None
        model = reference.module if learner.zero_stage == 3 else reference
        return MovingReference(self._engine.module, model, self._config, refresh=zero.refresh_whole)


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
