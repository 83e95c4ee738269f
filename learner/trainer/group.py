"""The learner as the driver calls it: all ranks as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from common.allocator import KEPT_MEMORY
from common.config.schema import Config
from common.errors import CheckpointError, RunFolderError
from common.labels.closed_set import Answer
from common.placement import get, schedule_in
from common.shared_folder import SharedFolder
from common.storage.output import Place, WriteReport, find_unseen
from common.types import ImageFeatures, Prompt, ScoredGroup, SharedFeatures, StepResult, WeightManifest
from learner.objective.records import Coefficients
from learner.trainer.microbatches import deal_groups, divide
from learner.trainer.offline_groups import build_unscored_group
from learner.trainer.rank import LearnerRank
from learner.trainer.rank_pack import RankPack, pack_groups
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


class LearnerGroup:
    """All ranks of the learner. It starts them and does not wait: call `ready` before anything else.

    Any error of `step`, and any wait past its deadline, leaves the ranks out of step with each other: close the group.
    A failed `save` does not.
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
    ) -> None:
        """Start the ranks.

        Args:
            place: holds a bundle for each rank; None: wherever Ray finds room.
            model_path: folder or hub id of the policy as it starts, and of the reference as it stays; a shared folder
                where ranks run on other hosts.
            banned: ids that no completion may hold; engines have the same list.
            steps: optimizer steps of the whole run, the schedule's length; with 0 it only scores, without an optimizer.
            tower_runs: prompts come with pixels; False where all come with features of a frozen vision tower.
        """
        self._config = config
        self._place = place
        self._ranks = [
            self._actor(index).remote(
                config, rank=index, model_path=model_path, banned=banned, steps=steps, tower_runs=tower_runs
            )
            for index in range(config.learner.ranks)
        ]
        # Ray hands a rank the value of a reference.
        store = cast("tuple[str, int]", call(self._ranks[0], LearnerRank.open_store))
        self._started = [call(rank, LearnerRank.start, store) for rank in self._ranks]

    def ready(self, timeout_s: float) -> None:
        """Wait until every rank holds its model. Raises DeadlineError, or what a rank raised."""
        get(self._started, what="the learner's ranks to start", timeout_s=timeout_s)

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
        self._sent = [call(rank, LearnerRank.begin_step, self._step.coefficients, at=at) for rank in self._ranks]

    def learn_range(self, scored: Sequence[ScoredGroup], *, last: bool) -> None:
        """Learn from the groups of the next range, given in prompt order. Return at once: the ranks go on learning."""
        kl = self._measure_kl(scored) if self._config.kl_in_reward else None
        for packs in self._step.add(scored, last=last, kl=kl):
            self._sent += [
                call(rank, LearnerRank.learn, own, last=last) for rank, own in zip(self._ranks, packs, strict=True)
            ]

    def finish_step(self) -> StepResult:
        """Wait until all ranges are learned, take the optimizer step and return its figures."""
        refs = [call(rank, LearnerRank.finish_step, self._step.correct()) for rank in self._ranks]
        timeout_s = self._config.learner.step_timeout_s
        get(self._sent, what="a learner step", timeout_s=timeout_s)  # an error of a range is the first to be raised
        return self._step.describe(get(refs, what="a learner step", timeout_s=timeout_s))

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
        refs = [
            call(rank, method, packs, *args, **kwargs)
            for rank, packs in zip(self._ranks, pack_groups(scored, dealt), strict=True)
        ]
        answers = get(refs, what=what, timeout_s=self._config.learner.step_timeout_s)

        # Each micro-batch comes back as one flat list: cut it into groups and completions again.
        by_group: dict[int, list[tuple[float, ...]]] = {}
        for micros, flats in zip(dealt, answers, strict=True):
            for micro, flat in zip(micros, flats, strict=True):
                tokens = iter(flat)
                for index in micro.groups:
                    completions = scored[index].group.completions
                    by_group[index] = [tuple(next(tokens) for _ in c.token_ids) for c in completions]
        return [by_group[index] for index in range(len(scored))]

    def vision_features(self, images: Sequence[ImageFeatures | SharedFeatures]) -> list[ImageFeatures | SharedFeatures]:
        """Return the features of each prompt's pictures, in order; see `learner.model.vision_features`."""
        ranks = len(self._ranks)
        most = -(-len(images) // ranks)  # ZeRO-3 wants all ranks to run the vision tower equally often
        shares = [(*images[rank::ranks], *images[:1])[:most] for rank in range(ranks)]
        refs = [call(rank, LearnerRank.vision_features, share) for rank, share in zip(self._ranks, shares, strict=True)]
        made = get(refs, what="the features of a frozen vision tower", timeout_s=self._config.learner.step_timeout_s)
        return [made[index % ranks][index // ranks] for index in range(len(images))]

    def publish(self, version: int) -> WeightManifest:
        """Return the full set of weights as they are now, as an immutable version."""
        manifests = self._all("weights to publish", self._config.weights.timeout_s, LearnerRank.publish, version)
        return cast("WeightManifest", manifests[0])  # only rank 0 has one

    def copy(self, version: int) -> WeightManifest:
        """Return the same weights as bytes in the object store, for an engine that came after a broadcast."""
        manifests = self._all("weights to copy", self._config.weights.timeout_s, LearnerRank.copy, version)
        return cast("WeightManifest", manifests[0])

    def nccl_rendezvous(self, world_size: int, limit_s: float) -> dict[str, Any]:
        """Begin to open the NCCL group of rank 0 and the engines' workers, `world_size` in all.

        Returns the keywords of vLLM's NCCLWeightTransferInitInfo for the first engine; `rank_offset` of the next one is
        that plus the workers of this one. Rank 0 waits inside until all have joined, for `limit_s` at most: the next
        call of this group does.
        """
        point = call(self._ranks[0], LearnerRank.free_port)
        ((address, port),) = get([point], what="a port for the weights", timeout_s=self._config.weights.timeout_s)
        self._joining = [
            call(rank, LearnerRank.join_engines, address, port, world_size, limit_s) for rank in self._ranks
        ]
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

        Returns False, with the group gone, where one did not join, or did not take part within `limit_s`.
        """
        timeout_s = self._config.weights.timeout_s + limit_s  # ranks see to the limit themselves
        joined = get(self._joining, what="the engines to join the learner's NCCL group", timeout_s=timeout_s)
        what = f"the broadcast of weights version {version}"
        return all(joined) and all(self._all(what, timeout_s, LearnerRank.broadcast, limit_s))

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
        asked = [self._ranks[0].checkpoint_bytes.remote()]
        (size,) = get(asked, what="the size of a checkpoint", timeout_s=self._config.learner.step_timeout_s)
        return int(size)

    def load(self, place: Place, reports: Sequence[WriteReport] = ()) -> None:
        """Continue from what `save` wrote, bit for bit, with as many ranks. See `LearnerRank.load`."""
        timeout_s = self._config.learner.step_timeout_s
        self._all("a checkpoint to be loaded", timeout_s, LearnerRank.load, place, reports)

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

    def close(self) -> None:
        """End every rank."""
        import ray

        for rank in self._ranks:
            ray.kill(rank)

    def _actor(self, index: int) -> Any:
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
        return ray.remote(LearnerRank).options(
            num_cpus=learner.cpus_per_rank,
            num_gpus=learner.gpus_per_rank,
            scheduling_strategy=schedule_in(self._place, bundle=index),
            runtime_env={"env_vars": environment},
        )

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
        return get([call(rank, method, *args, **kwargs) for rank in self._ranks], what=what, timeout_s=timeout_s)


def _list_errors(reports: Sequence[WriteReport]) -> str:
    """Return what ranks could not write, with their hosts; nothing where all was written."""
    return "; ".join(f"{report.by} on {report.host}: {report.error}" for report in reports if report.error)
