"""The learner as the driver calls it: all ranks as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from common.allocator import KEPT_MEMORY
from common.config.schema import Config
from common.errors import CheckpointError, RunFolderError
from common.labels.closed_set import Answer
from common.placement import get, schedule_in
from common.process import CONTROL, ActorView
from common.shared_folder import SharedFolder
from common.storage.output import Place, WriteReport, find_unseen
from common.telemetry.reporting import Reporting
from common.types import ImageFeatures, Images, Prompt, ScoredGroup, SharedFeatures, StepResult, WeightManifest
from learner.objective.records import Coefficients
from learner.trainer.microbatches import deal_groups, divide
from learner.trainer.offline_groups import build_unscored_group
from learner.trainer.rank import LearnerRank
from learner.trainer.rank_pack import RankPack, pack_groups
from learner.trainer.recovery.owned import OwnedWeights, compute_owned_features
from learner.trainer.recovery.ring import RankRing
from learner.trainer.sent_step import SentStep

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.placement_group import PlacementGroup

Params = ParamSpec("Params")
Value = TypeVar("Value")


def call(
    rank: Any, method: Callable[Concatenate[LearnerRank, Params], Value], /, *args: Params.args, **kwargs: Params.kwargs
) -> ObjectRef[Value]:
    """Start `method` on the actor `rank` and return the reference of its value.

    `call(rank, LearnerRank.publish, 3)` is `rank.publish.remote(3)` whose name and arguments a type checker reads.
    """
    ref: ObjectRef[Value] = getattr(rank, method.__name__).remote(*args, **kwargs)
    return ref


def tell_nobody(kind: str, **fields: Any) -> None:
    """Take an event and do nothing with it."""


class LearnerGroup:
    """All ranks of the learner. It starts them and does not wait: call `ready` before anything else.

    A rank that is lost is replaced within any call, which then returns what it would have: see `RankRing`. Any other
    error of `step` leaves the ranks out of step with each other: close the group. A failed `save` does not.
    """

    def __init__(
        self,
        config: Config,
        *,
        model_path: str | SharedFolder,
        banned: tuple[int, ...],
        steps: int,
        tower_runs: bool = True,
        place: PlacementGroup | None = None,
        renew: Callable[[PlacementGroup], PlacementGroup] = lambda place: place,
        on_event: Callable[..., None] = tell_nobody,
        reporting: Reporting | None = None,
    ) -> None:
        """Start the ranks.

        Args:
            model_path: folder or hub id of the policy as it starts, and of the reference as it stays; a shared folder
                where ranks run on other hosts.
            banned: ids that no completion may hold; engines have the same list.
            steps: optimizer steps of the whole run, the schedule's length; with 0 it only scores, without an optimizer.
            tower_runs: prompts come with pixels; False where all come with features of a frozen vision tower.
            place: holds a bundle for each rank; None: wherever Ray finds room.
            renew: returns another place for one whose node may be lost.
            on_event: is told of ranks that are lost and built anew, also by another thread.
            reporting: what ranks need to report what they do; None: they do not.
        """
        self._config = config

        def spawn(rank: int, place: PlacementGroup | None) -> Any:
            return self._actor(rank, place).remote(
                config,
                rank=rank,
                model_path=model_path,
                banned=banned,
                steps=steps,
                tower_runs=tower_runs,
                reporting=reporting,
            )

        self._weights = OwnedWeights()
        self._ring = RankRing(config, spawn, place=place, renew=renew, on_event=on_event)

    def ready(self, timeout_s: float) -> None:
        """Wait until every rank holds its model. Raises DeadlineError, or what a rank raised."""
        self._ring.ready(timeout_s)

    def step(self, scored: Sequence[ScoredGroup], *, at: int, coefficients: Coefficients | None = None) -> StepResult:
        """Learn from all groups of a step, given in prompt order.

        Args:
            at: steps of the run so far, which say the learning rate.
            coefficients: None: those of the configuration.
        """
        self.begin_step(at=at, coefficients=coefficients)
        ranges = divide(scored, self._config.ranges)
        for number, groups in enumerate(ranges, 1):
            self.learn_range(groups, last=number == len(ranges))
        return self.finish_step()

    def begin_step(self, *, at: int, coefficients: Coefficients | None = None) -> None:
        """Begin a step, whose ranges of groups follow one by one; see `step`."""
        self._step = SentStep(config=self._config, coefficients=coefficients or Coefficients.of(self._config))
        coefficients = self._step.coefficients
        self._ring.step = at
        self._ring.change(lambda ranks: [call(rank, LearnerRank.begin_step, coefficients, at=at) for rank in ranks])

    def learn_range(self, scored: Sequence[ScoredGroup], *, last: bool) -> None:
        """Learn from the groups of the next range, given in prompt order. Return at once: the ranks go on learning."""
        kl = self._measure_kl(scored) if self._config.kl_in_reward else None
        for packs in self._step.add(scored, last=last, kl=kl):
            self._ring.change(partial(_send_packs, packs, last=last))

    def finish_step(self) -> StepResult:
        """Wait until all ranges are learned, take the optimizer step and return its figures."""
        correction = self._step.correct()
        self._ring.change(lambda ranks: [call(rank, LearnerRank.finish_step, correction) for rank in ranks])
        stats = self._ring.settle(what="a learner step", timeout_s=self._config.learner.step_timeout_s)
        return self._step.describe(stats)

    def keep(self) -> None:
        """Begin to copy the state after the last step to memory, where that is due. Return at once."""
        self._ring.keep()

    def _measure_kl(self, scored: Sequence[ScoredGroup]) -> dict[str, list[tuple[float, ...]]]:
        """Return the KL of every token of sampled completions, by prompt id and completion."""
        sampled = [one for one in scored if one.group.origin == "sampled"]
        found = self._ask_tokens(sampled, "the KL to the reference", LearnerRank.measure_kl)
        return {one.prompt.id: rows for one, rows in zip(sampled, found, strict=True)}

    def logprobs(self, scored: Sequence[ScoredGroup]) -> list[list[tuple[float, ...]]]:
        """Return the policy's log-probs of every token, by group and completion, under the sampling settings."""
        return self._ask_tokens(scored, "the learner's log-probs", LearnerRank.logprobs, cut=True)

    def candidate_logprobs(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]
    ) -> list[list[tuple[float, ...]]]:
        """Return the policy's log-probs of every token of given answers, by prompt and answer.

        Each prompt is read once. Top-k and top-p are left out; `rollout.temperature` is not.

        Args:
            answers: of each prompt, as `common.labels.closed_set` writes them; the last token is the end of turn.
        """
        groups = [build_unscored_group(prompt, own) for prompt, own in zip(prompts, answers, strict=True)]
        return self._ask_tokens(groups, "the learner's log-probs", LearnerRank.logprobs, cut=False)

    def _ask_tokens(
        self,
        scored: Sequence[ScoredGroup],
        what: str,
        method: Callable[Concatenate[LearnerRank, Sequence[RankPack], Params], list[list[float]]],
        /,
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> list[list[tuple[float, ...]]]:
        """Return a value of every token, by group and completion; `method` of a rank gives them pack by pack."""
        if not scored:
            return []
        dealt = deal_groups(scored, self._config.learner)
        packed, timeout_s = pack_groups(scored, dealt), self._config.learner.step_timeout_s

        def ask(ranks: Sequence[Any]) -> list[list[list[float]]]:
            refs = [call(rank, method, own, *args, **kwargs) for rank, own in zip(ranks, packed, strict=True)]
            return get(refs, what=what, timeout_s=timeout_s)

        answers = self._ring.run(ask)

        # Each micro-batch comes back as one flat list: cut it into groups and completions again.
        by_group: dict[int, list[tuple[float, ...]]] = {}
        for micros, flats in zip(dealt, answers, strict=True):
            for micro, flat in zip(micros, flats, strict=True):
                tokens = iter(flat)
                for index in micro.groups:
                    completions = scored[index].group.completions
                    by_group[index] = [tuple(next(tokens) for _ in c.token_ids) for c in completions]
        return [by_group[index] for index in range(len(scored))]

    def vision_features(self, images: Sequence[Images]) -> list[ImageFeatures | SharedFeatures]:
        """Return the features of each prompt's pictures, in order; see `learner.model.vision_features`."""
        return compute_owned_features(self._ring, images, timeout_s=self._config.learner.step_timeout_s)

    def publish(self, version: int) -> WeightManifest:
        """Return the full set of weights as they are now, as an immutable version."""
        if self._config.weights.transport == "object_store":
            return self.copy(version)
        manifests = self._all("weights to publish", self._config.weights.timeout_s, LearnerRank.announce, version)
        return cast("WeightManifest", manifests[0])  # only rank 0 has one

    def copy(self, version: int) -> WeightManifest:
        """Return the weights as they are now as bytes in the object store, whatever the transport.

        They outlive the ranks: what a call returns belongs to the caller.
        """
        return self._weights.publish(self._ring, version, timeout_s=self._config.weights.timeout_s)

    def nccl_rendezvous(self, world_size: int, limit_s: float) -> dict[str, Any]:
        """Begin to open the NCCL group of rank 0 and the engines' workers, `world_size` in all.

        Returns the keywords of vLLM's NCCLWeightTransferInitInfo for the first engine; `rank_offset` of the next one is
        that plus the workers of this one. Rank 0 waits inside until all have joined, for `limit_s` at most: the next
        call of this group does.
        """
        timeout_s = self._config.weights.timeout_s

        def ask(ranks: Sequence[Any]) -> list[tuple[str, int]]:
            return get([call(ranks[0], LearnerRank.free_port)], what="a port for the weights", timeout_s=timeout_s)

        ((address, port),) = self._ring.run(ask)
        ranks = self._ring.ranks
        self._joining = [call(rank, LearnerRank.join_engines, address, port, world_size, limit_s) for rank in ranks]
        return {
            "master_address": address,
            "master_port": port,
            "rank_offset": 1,
            "world_size": world_size,
            "packed": True,
            "packed_buffer_size_bytes": self._config.weights.bucket_mb * 2**20,
        }

    def broadcast(self, version: int, limit_s: float) -> bool:
        """Send a published version by NCCL. Call it while the engines receive; it returns when all of them have it.

        Returns False, with the group gone, where one did not join, or did not take part within `limit_s`, or where a
        rank was lost.
        """
        timeout_s = self._config.weights.timeout_s + limit_s  # ranks see to the limit themselves
        joining, builds, what = self._joining, self.builds, f"the broadcast of weights version {version}"

        def send(ranks: Sequence[Any]) -> bool:
            if self.builds != builds:
                return False  # the group was of the ranks before
            joined = get(joining, what="the engines to join the learner's NCCL group", timeout_s=timeout_s)
            sent = [call(rank, LearnerRank.broadcast, limit_s) for rank in ranks] if all(joined) else []
            return bool(sent) and all(get(sent, what=what, timeout_s=timeout_s))

        return self._ring.run(send)

    def start_profile(self) -> None:
        """Make every rank record what it does from now on."""
        self._all("profiles to begin", self._config.learner.step_timeout_s, LearnerRank.start_profile)

    def stop_profile(self, place: Place) -> list[WriteReport]:
        """Make every rank write its record to `place`; see `common.recorder`."""
        timeout_s = self._config.learner.step_timeout_s
        return self._all("profiles to be written", timeout_s, LearnerRank.stop_profile, place)

    def save(self, place: Place) -> list[WriteReport]:
        """Write everything `load` needs, one file or more a rank. Return what each rank wrote on its host.

        Raises CheckpointError naming what was not written; training can go on.
        """
        reports = self._all("a checkpoint's files", self._config.learner.step_timeout_s, LearnerRank.save, place)
        if errors := _list_errors(reports):
            raise CheckpointError(
                f"cannot write the checkpoint {place}", got=errors, remedy="make room there, or bring it back"
            )
        return reports

    def checkpoint_bytes(self) -> int:
        """Estimate the bytes that `save` writes."""
        timeout_s = self._config.learner.step_timeout_s

        def ask(ranks: Sequence[Any]) -> list[int]:
            asked = [call(ranks[0], LearnerRank.checkpoint_bytes)]
            return get(asked, what="the size of a checkpoint", timeout_s=timeout_s)

        return self._ring.run(ask)[0]

    def load(self, place: Place, reports: Sequence[WriteReport] = (), *, at: int = 0) -> None:
        """Continue from what `save` wrote after `at` steps, bit for bit, with as many ranks. See `LearnerRank.load`."""
        self._ring.step = at
        self._ring.change(lambda ranks: [call(rank, LearnerRank.load, place, reports) for rank in ranks])
        self._ring.settle(what="a checkpoint to be loaded", timeout_s=self._config.learner.step_timeout_s)

    @property
    def builds(self) -> int:
        """How often the ranks were built."""
        return self._ring.builds

    def tell_rebuilt(self, source: str, began: float) -> None:
        """Note that all ranks are back; see `RankRing.tell_rebuilt`."""
        self._ring.tell_rebuilt(source, began)

    def rebuild(self) -> None:
        """Build all ranks anew after a loss that memory does not lead back from: as they start."""
        self._ring.rebuild()

    def export(self, place: Place) -> None:
        """Write the policy in Hugging Face layout: weights, config, generation config, processor, chat template.

        Raises RunFolderError where rank 0 could not write, or this process does not see at `place` what it wrote.
        """
        timeout_s = self._config.learner.step_timeout_s
        reports = self._all("the export of the weights", timeout_s, LearnerRank.export, place)
        if fault := _list_errors(reports) or find_unseen(place, reports, hashed=True):
            raise RunFolderError(
                "the exported model is not in the run folder",
                got=fault,
                remedy="give run_dir a place that every host reaches, and start again with resume=auto",
            )

    def list_actors(self) -> list[ActorView]:
        """Return every rank. Whatever is asked of one is asked of all."""
        return [ActorView(name=f"rank-{rank}", actor=one, owes=True) for rank, one in enumerate(self._ring.ranks)]

    def count_progress(self) -> object:
        """Return what is another as soon as a rank gets on with something."""
        return self._ring.count_progress()

    def close(self) -> None:
        """End every rank."""
        self._ring.close()

    def _actor(self, index: int, place: PlacementGroup | None) -> Any:
        """Return the actor class of one rank, bound to its place and environment."""
        import ray

        cluster, learner = self._config.cluster, self._config.learner
        environment = {
            "OMP_NUM_THREADS": str(cluster.threads),
            "DS_ACCELERATOR": cluster.device,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on a GPU
            "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # whoever calls torch.load: a file that holds code is refused
        }
        if cluster.device == "cpu":
            environment |= KEPT_MEMORY
        settings: dict[str, Any] = {
            "num_cpus": learner.cpus_per_rank,
            "num_gpus": learner.gpus_per_rank,
            "concurrency_groups": {CONTROL: 1},
            "scheduling_strategy": schedule_in(place, bundle=index),
            "runtime_env": {"env_vars": environment},
        }
        return ray.remote(**settings)(LearnerRank)

    def _all(
        self,
        what: str,
        timeout_s: float,
        method: Callable[Concatenate[LearnerRank, Params], Value],
        /,
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> list[Value]:
        """Run `method` on every rank and return its values in rank order; `what` names the wait."""

        def ask(ranks: Sequence[Any]) -> list[Value]:
            return get([call(rank, method, *args, **kwargs) for rank in ranks], what=what, timeout_s=timeout_s)

        return self._ring.run(ask)


def _send_packs(packs: Sequence[Sequence[RankPack]], ranks: Sequence[Any], *, last: bool) -> list[Any]:
    """Let each rank learn its own packs."""
    return [call(rank, LearnerRank.learn, own, last=last) for rank, own in zip(ranks, packs, strict=True)]


def _list_errors(reports: Sequence[WriteReport]) -> str:
    """Return what ranks could not write, with their hosts; nothing where all was written."""
    return "; ".join(f"{report.by} on {report.host}: {report.error}" for report in reports if report.error)
