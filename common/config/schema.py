"""The whole configuration: its sections, the keys that stand in none, and the combinations that cannot work.

With no `--config` the embedded recipe `deploy/recipes/digits.yaml` is read, which runs on a laptop, or
`digits-gpu.yaml` where the GPU packages are installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, model_validator

from common.config.objective import ObjectiveConfig, explain_idle, list_changed
from common.config.sections import (
    EMBEDDED_MODEL,
    FREE_ON_RESUME,
    LOCAL_CLUSTER,
    OBJECT_QUESTION,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    ExactConfig,
    Free,
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    NonNegative,
    Positive,
    RewardConfig,
    RolloutConfig,
    Section,
    Seed,
    SignalConfig,
    TrackingConfig,
    WeightsConfig,
)
from common.errors import ConfigError, RunFolderError
from common.storage.bucket import BucketFolder, is_url

__all__ = [
    "EMBEDDED_MODEL",
    "LOCAL_CLUSTER",
    "OBJECT_QUESTION",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ExactConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "RewardConfig",
    "RolloutConfig",
    "SignalConfig",
    "TrackingConfig",
    "WeightsConfig",
    "config_hash",
    "flatten",
    "incompatible_keys",
    "keys_free_on_resume",
]


_ROUNDING = 0.01  # of a log-prob in bfloat16, about


def _check_url(place: Any, info: ValidationInfo) -> Any:
    """Return a path or URL as text. Raises ValueError for a URL that is none of a folder in a bucket."""
    text = str(place) if isinstance(place, Path) else place
    if isinstance(text, str) and is_url(text):
        try:
            BucketFolder.parse(text)
        except RunFolderError as error:
            raise ValueError(f"{info.field_name} = {error.got}: {error.remedy}") from None
    return text


def _find_fault(address: str | None) -> str | None:
    """Say why Ray could never join a cluster at an address; None for one that may be there."""
    if address is None:
        return None
    if re.match(r"(https?|redis|tcp|s3|gs|file)://", address, re.IGNORECASE):
        return "not a scheme of Ray's"
    port = re.search(r":(\d+)$", address)
    if port and not 1 <= int(port[1]) <= 65535:
        return f"{port[1]} is no port"
    return "blanks in it" if re.search(r"\s", address) else None


LABEL_NAME = r"([A-Za-z0-9][-A-Za-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"  # as Ray takes it
MOST_STEPS = 10_000_000
RAYS_GRAIN = 0.0001  # of a CPU or GPU
FolderOrURL = Annotated[str, BeforeValidator(_check_url)]


class Config(Section):
    """One run."""

    seed: Seed = 1
    """Seed of every random draw, such as row order and sampling. Change it to repeat a run independently."""
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 250
    """Optimizer steps of the run."""
    epochs: Positive | None = None
    """Passes over the training rows, in place of `steps`; turned into steps once the rows are counted."""
    method: Literal["grpo", "exact", "sft"] = "grpo"
    """grpo: learn from G sampled answers a prompt. exact: from all candidates of the row, each weighted with its
    probability. sft: from the label alone."""
    run_dir: Free[FolderOrURL | None] = None
    """Folder of the run, or s3://BUCKET/FOLDER (gs:// too); by default `runs/<date>-<name>`. Every host must reach
    it."""
    name: Free[str] = "run"
    """Name of the run, for its folder and its report."""
    resume: Free[FolderOrURL | None] = None
    """auto: go on from the newest sound checkpoint of the run folder, or of `runs/latest`; without one, start afresh.
    A path: go on from that run folder or checkpoint."""
    retries: Free[NonNegative] = 0
    """Times in a row that a run which failed or was lost starts again by itself, with resume=auto. A new checkpoint
    begins the count anew. What is refused, or ended by a signal, is not tried again."""
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    signal: SignalConfig = SignalConfig()
    reward: RewardConfig = RewardConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    learner: LearnerConfig = LearnerConfig()
    exact: ExactConfig = ExactConfig()
    weights: Free[WeightsConfig] = WeightsConfig()
    evaluation: Free[EvaluationConfig] = EvaluationConfig()
    checkpoint: Free[CheckpointConfig] = CheckpointConfig()
    tracking: Free[TrackingConfig] = TrackingConfig()
    cluster: Free[ClusterConfig] = ClusterConfig()

    @property
    def towers_frozen(self) -> bool:
        """Whether nothing before the language model, vision tower and projector, is trained."""
        return self.model.freeze_vision or (self.lora.rank > 0 and self.lora.targets == "language")

    @property
    def loss(self) -> str:
        """The name in `learner.objective.losses.LOSSES` of the method's own loss."""
        own = {"grpo": self.objective.loss, "exact": f"exact_{self.exact.advantage}", "sft": "sft"}
        return own[self.method]

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL to the reference is taken off the rewards."""
        return self.objective.kl_in == "reward" and self.learner.beta > 0

    @property
    def ranges(self) -> int:
        """Parts of a step that are learned one by one: `learner.ranges`, but at least one group a rank in each."""
        if self.learned_whole:
            return 1
        return min(self.learner.ranges, self.rollout.prompts_per_step // self.learner.ranks)

    @property
    def learned_whole(self) -> str | None:
        """Why a step is learned once all its groups are there, whatever `learner.ranges` says; None where it is not."""
        objective = self.objective
        if self.method != "grpo":
            return f"method = {self.method}"
        if self.signal.max_prompts > 1:
            return f"signal.max_prompts = {self.signal.max_prompts:g}"
        if objective.advantage in ("batch", "whitened", "whitened_baseline"):
            return f"objective.advantage = {objective.advantage}"
        if objective.minibatches > 1:
            return f"objective.minibatches = {objective.minibatches}"
        if self.kl_in_reward:
            return "objective.kl_in = reward"
        if objective.entropy_bonus and objective.aggregation != "token":
            return f"objective.entropy_bonus = {objective.entropy_bonus:g}, a mean over tokens"
        return None

    @property
    def completions(self) -> int:
        """Sampled completions of a step."""
        return self.sampled_prompts * self.rollout.group_size

    @property
    def most_prompts(self) -> int:
        """Prompts that a step may ask."""
        return int(self.signal.max_prompts * self.rollout.prompts_per_step + 1e-9)  # 1.15 * 100 is a little less

    @property
    def largest_group(self) -> int:
        """Completions that one prompt may be asked for."""
        return self.signal.max_group_size or self.rollout.group_size

    def correction_at(self, lag: int) -> str:
        """Return what `objective.correction` comes to for groups sampled with weights `lag` steps old.

        auto corrects where engine and learner hold other weights, and where they round differently.
        """
        if self.objective.correction != "auto":
            return self.objective.correction
        return "none" if lag <= 0 and self.model.dtype == "float32" else "truncate"

    @property
    def sampled_prompts(self) -> int:
        """How many prompts of a step the engines sample; the others have given answers."""
        share = {"grpo": 1.0, "exact": self.exact.sampled_share, "sft": 0.0}[self.method]
        return round(share * self.rollout.prompts_per_step)

    def with_epochs_as_steps(self, rows: int) -> Config:
        """Return the configuration with `epochs` turned into steps over `rows` training rows.

        The last step is filled up: 50 epochs of 188 rows, 16 prompts a step, are ceil(9400 / 16) = 588 steps.

        Raises:
            ConfigError: a key that counts steps, as `learner.warmup_steps`, does not fit them.
        """
        if self.epochs is None:
            return self
        steps = math.ceil(rows * self.epochs / self.rollout.prompts_per_step)
        config = self.model_copy(update={"steps": steps, "epochs": None})
        if misfits := list(config._misfits()):  # noqa: SLF001  # its own kind
            raise ConfigError(
                f"epochs = {self.epochs} over {rows} rows are {steps} steps, and another key does not fit them",
                got="; ".join(misfits),
                remedy="lower epochs" if steps > MOST_STEPS else "correct the key named, or raise epochs",
            )
        return config

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if misfits := list(self._misfits()):
            raise ValueError("\n".join(misfits))
        return self

    def _misfits(self) -> Iterator[str]:
        """Yield a line for each impossible combination, which names its keys as `section.key = value`."""
        yield from self._length_misfits()
        yield from self._learning_misfits()
        yield from self._device_misfits()
        yield from self._data_misfits()
        yield from self._memory_misfits()
        yield from self._evaluation_misfits()
        yield from self._method_misfits()
        yield from self._objective_misfits()
        yield from self._signal_misfits()
        yield from self._lag_misfits()
        yield from self._reference_misfits()

    def _length_misfits(self) -> Iterator[str]:
        """Yield those of steps and of prompts a step."""
        learner, rollout = self.learner, self.rollout
        if rollout.prompts_per_step % learner.ranks:
            yield (
                f"learner.ranks = {learner.ranks} does not divide rollout.prompts_per_step = "
                f"{rollout.prompts_per_step}: make one a multiple of the other"
            )
        if self.epochs is not None and "steps" in self.model_fields_set:
            yield f"steps = {self.steps} with epochs = {self.epochs}: leave one out"
        if self.steps > MOST_STEPS:  # counted from `epochs`
            yield f"epochs ask for {self.steps} steps, more than {MOST_STEPS}"
        if self.epochs is None and learner.warmup_steps >= self.steps:
            yield f"learner.warmup_steps = {learner.warmup_steps} leaves no step of steps = {self.steps}: lower it"
        if self.tracking.profile_steps:
            first, end = self.tracking.profile_steps
            if first >= end:
                yield f"tracking.profile_steps = [{first}, {end}] holds no step: the second is the one after the last"
            if self.epochs is None and first >= self.steps:
                yield f"tracking.profile_steps = [{first}, {end}] begins after the last step of steps = {self.steps}"

    def _learning_misfits(self) -> Iterator[str]:
        """Yield those of what is learned."""
        functions, learner = self.reward.functions, self.learner
        if not any(functions.values()) and self.method != "sft":
            yield f"reward.functions = {functions} all have weight 0: nothing could be learned"
        if learner.lr * learner.weight_decay >= 1:
            yield (
                f"learner.lr = {learner.lr:g} times learner.weight_decay = {learner.weight_decay:g} takes off whole "
                "weights at every step: lower one"
            )
        if not learner.max_restarts and learner.keep_every > 1:
            yield f"learner.keep_every = {learner.keep_every} with learner.max_restarts = 0: it has no effect"

    def _device_misfits(self) -> Iterator[str]:
        """Yield those of CPUs and GPUs, or of a run without."""
        for key, choices in (("rollout.labels", self.rollout.labels), ("learner.labels", self.learner.labels)):
            if odd := [name for choice in choices for name in choice if not re.fullmatch(LABEL_NAME, name)]:
                yield f"{key} = {choices}: {odd[0]!r} is no name of a label: write NAME=VALUE"
        least, most = self.rollout.min_engines, self.rollout.max_engines
        if least > most:
            yield f"rollout.engines = {self.rollout.engines}: min is above max"
        if least < most and not self.sampled_prompts:
            yield (
                f"rollout.engines = {self.rollout.engines} with method = {self.method}: nothing is sampled, so the "
                "learner waits for no engine; give one number"
            )
        if fault := _find_fault(self.cluster.address):
            yield f"cluster.address = {self.cluster.address}: {fault}; write HOST:PORT, as 10.0.0.9:6379"
        cpus = {
            "learner.cpus_per_rank": self.learner.cpus_per_rank,
            "rollout.cpus_per_engine": self.rollout.cpus_per_engine,
            "reward.cpus_per_worker": self.reward.cpus_per_worker,
        }
        gpus = {
            "learner.gpus_per_rank": self.learner.gpus_per_rank,
            "rollout.gpus_per_engine": self.rollout.gpus_per_engine,
        }
        for key, count in (cpus | gpus).items():
            if 0 < count < RAYS_GRAIN:
                yield f"{key} = {count:g} is less than Ray counts: take 0, or at least {RAYS_GRAIN}"
        yield from self._cpu_misfits(gpus) if self.cluster.device == "cpu" else self._gpu_misfits(gpus)

    def _cpu_misfits(self, gpus: dict[str, float]) -> Iterator[str]:
        """Yield those of a run on CPUs."""
        for key, count in gpus.items():
            if count:
                yield f"cluster.device = cpu with {key} = {count:g}: set {key} to 0"
        if self.weights.transport == "nccl":
            yield "weights.transport = nccl needs cluster.device = cuda: use object_store on CPU"
        if self.learner.attention in ("flash", "flex"):
            yield f"learner.attention = {self.learner.attention} needs cluster.device = cuda: use auto on CPU"
        if self.learner.offload != "none":
            offload = self.learner.offload
            yield f"learner.offload = {offload} with cluster.device = cpu: all is in the host's memory already"

    def _gpu_misfits(self, gpus: dict[str, float]) -> Iterator[str]:
        """Yield those of a run on GPUs."""
        more = {"learner.gpus_per_rank": "learner.ranks", "rollout.gpus_per_engine": "rollout.engines"}
        for key, count in gpus.items():
            if count > 1:
                yield (
                    f"{key} = {count:g} reserves GPUs of which only one is used, for there is no tensor parallelism: "
                    f"set {key} to 1, and raise {more[key]}"
                )
            if count < 1 and self.weights.transport == "nccl":
                yield (
                    f"weights.transport = nccl with {key} = {count:g}: NCCL takes no two processes on one GPU; "
                    f"set {key} to 1, or weights.transport to object_store"
                )
        if self.learner.attention == "sparse":
            yield "learner.attention = sparse needs cluster.device = cpu: use auto on GPU"
        if self.learner.attention == "flash" and self.model.dtype == "float32":
            yield "learner.attention = flash with model.dtype = float32: it takes bfloat16 alone; use auto"
        ranks, share = self.learner.ranks, self.learner.gpus_per_rank
        if ranks > 1 and share <= 0.5:  # 0 reserves none, and all ranks would take the first
            yield (
                f"learner.ranks = {ranks} with learner.gpus_per_rank = {share:g}: ranks talk by NCCL, which takes no "
                "two processes on one GPU; raise learner.gpus_per_rank above 0.5, or set learner.ranks to 1"
            )

    def _data_misfits(self) -> Iterator[str]:
        """Yield those of images and prompts."""
        least, most = self.model.min_pixels, self.model.max_pixels
        if least is not None and most is not None and least > most:
            yield f"model.min_pixels = {least} is above model.max_pixels = {most}"
        if self.data.template is not None and (times := self.data.template.count("{problem}")) != 1:
            yield f"data.template = {self.data.template!r} holds {{problem}} {times} times: it must be there once"

    def _method_misfits(self) -> Iterator[str]:
        """Yield those of `method`."""
        share, prompts = self.exact.sampled_share, self.rollout.prompts_per_step
        if self.method == "exact" and self.data.mode != "no_think":
            yield f"method = exact with data.mode = {self.data.mode}: only a bare label has few enough answers to list"
        if self.method == "exact" and share and self.sampled_prompts in (0, prompts):
            yield (
                f"exact.sampled_share = {share:g} of rollout.prompts_per_step = {prompts} is {self.sampled_prompts} "
                "prompts: some must be sampled and some not"
            )
        if self.method == "exact" and not share and self.reward.normalise == "each":
            yield "reward.normalise = each with method = exact, which follows the sum of the rewards: set it to sum"
        if self.method == "sft" and self.learner.beta:
            yield f"method = sft with learner.beta = {self.learner.beta:g}: it has no KL to a reference, set it to 0"

    def _objective_misfits(self) -> Iterator[str]:
        """Yield those of `objective`."""
        objective, rollout = self.objective, self.rollout
        sampling = set() if self.sampled_prompts else list_changed(objective) - {"updates", "minibatches"}
        for key in sorted(sampling):
            yield (
                f"objective.{key} = {getattr(objective, key)} with method = {self.method}: nothing is sampled, so "
                "it has no effect"
            )
        settled = objective.model_copy(update={"correction": self.correction_at(lag=rollout.max_lag)})
        for key, reason in explain_idle(settled, beta=self.learner.beta):
            yield f"objective.{key} = {getattr(objective, key)} with {reason}: it has no effect"
        if objective.minibatches > 1 and rollout.prompts_per_step % (objective.minibatches * self.learner.ranks):
            yield (
                f"objective.minibatches = {objective.minibatches} with learner.ranks = {self.learner.ranks} does not "
                f"divide rollout.prompts_per_step = {rollout.prompts_per_step}: make it a multiple of both"
            )
        if objective.overlong_buffer >= rollout.max_completion_tokens:
            yield (
                f"objective.overlong_buffer = {objective.overlong_buffer} with rollout.max_completion_tokens = "
                f"{rollout.max_completion_tokens}: it must be shorter"
            )
        if objective.advantage == "mean":
            for cause in self._list_negative_rewards():
                yield (
                    f"objective.advantage = mean with {cause}: rewards would be below 0, and a share of a mean below 0 "
                    "teaches the opposite; set objective.advantage to group or none"
                )
        if self.reward.normalise == "each" and (self.kl_in_reward or objective.overlong_buffer):
            key = "kl_in" if self.kl_in_reward else "overlong_buffer"
            yield (
                f"objective.{key} = {getattr(objective, key)} with reward.normalise = each: it changes the sum of the "
                "rewards; set reward.normalise to sum"
            )

    def _list_negative_rewards(self) -> Iterator[str]:
        """Yield the settings under which a reward that is compared may be below 0."""
        for name, weight in self.reward.functions.items():
            if (weight < 0 and self.reward.normalise == "sum") or (weight and name == "repetition"):
                yield f"reward.functions = {{{name}: {weight:g}}}"
        if self.kl_in_reward:
            yield "objective.kl_in = reward"
        if self.objective.overlong_buffer:
            yield f"objective.overlong_buffer = {self.objective.overlong_buffer}"

    def _lag_misfits(self) -> Iterator[str]:
        """Yield those of `rollout.max_lag`, and of the updates in flight that it allows."""
        rollout = self.rollout
        if rollout.update == "in_flight" and not rollout.max_lag:
            yield (
                "rollout.update = in_flight with rollout.max_lag = 0: no newer weights come amid a batch; raise "
                "rollout.max_lag"
            )
        if rollout.replay is not None and rollout.update != "in_flight":
            yield (
                f"rollout.replay = {rollout.replay} with rollout.update = {rollout.update}: only runs with in_flight "
                "keep a journal; others need none, the same configuration repeats them"
            )
        if not (lag := rollout.max_lag):
            return
        if not self.sampled_prompts:
            yield f"rollout.max_lag = {lag} with method = {self.method}: nothing is sampled, so it has no effect"
        if self.signal.max_prompts > 1:
            yield (
                f"signal.max_prompts = {self.signal.max_prompts:g} with rollout.max_lag = {lag}: further prompts of a "
                "step would be sampled with newer weights than its first; leave one out"
            )
        if self.weights.transport == "nccl":
            yield (
                f"weights.transport = nccl with rollout.max_lag = {lag}: a broadcast waits for engines that still "
                "sample with older weights; set weights.transport to object_store"
            )

    def _signal_misfits(self) -> Iterator[str]:
        """Yield those of `signal`."""
        signal, rollout, default = self.signal, self.rollout, SignalConfig()
        changed = [key for key in SignalConfig.model_fields if getattr(signal, key) != getattr(default, key)]
        if changed and not self.sampled_prompts:
            for key in changed:
                yield (
                    f"signal.{key} = {getattr(signal, key)} with method = {self.method}: nothing is sampled, so it has "
                    "no effect"
                )
            return
        if signal.max_prompts > 1 and self.most_prompts == rollout.prompts_per_step:
            yield (
                f"signal.max_prompts = {signal.max_prompts:g} with rollout.prompts_per_step = "
                f"{rollout.prompts_per_step} is no prompt more: raise it"
            )
        if signal.max_seconds is not None and signal.max_prompts == 1:
            yield f"signal.max_seconds = {signal.max_seconds:g} with signal.max_prompts = 1: it has no effect"
        if signal.skip_epochs != default.skip_epochs and not signal.skip_solved:
            yield f"signal.skip_epochs = {signal.skip_epochs} with signal.skip_solved = 0: it has no effect"
        largest = signal.max_group_size
        if largest is not None and largest <= rollout.group_size:
            yield (
                f"signal.max_group_size = {largest} with rollout.group_size = {rollout.group_size}: a step asks for "
                "that many a prompt on average, so the most must be larger"
            )
        if largest is not None and rollout.group_size == 2:
            yield (
                f"signal.max_group_size = {largest} with rollout.group_size = 2: no group can give one up, for 2 is "
                "the least; raise rollout.group_size"
            )
        if largest is not None and self.sampled_prompts == 1:
            yield (
                f"signal.max_group_size = {largest} with one sampled prompt a step: there is no other to give "
                "completions to; raise rollout.prompts_per_step"
            )

    def _reference_misfits(self) -> Iterator[str]:
        """Yield those of a reference that follows the policy."""
        learner, objective, every = self.learner, self.objective, self.learner.reference_reset_every
        found = {"reference_reset_every": every, "reference_ema": learner.reference_ema}
        given = [f"learner.{key} = {value:g}" for key, value in found.items() if value is not None]
        if len(given) > 1:
            yield f"{given[0]} with {given[1]}: the reference follows in one way; leave one out"
        for one in given:
            if not learner.beta:
                yield f"{one} with learner.beta = 0: there is no reference, so it has no effect"
            if self.lora.rank:
                yield (
                    f"{one} with lora.rank = {self.lora.rank}: the reference is the model without its adapters, which "
                    "stays as it is; leave it out, or set lora.rank = 0"
                )
        if every and self.epochs is None and every >= self.steps:
            yield f"learner.reference_reset_every = {every} is after the last step of steps = {self.steps}: lower it"
        if every == 1 and objective.updates == objective.minibatches == 1:
            yield (
                "learner.reference_reset_every = 1 with objective.updates = 1: every step would begin at its "
                "reference, and the KL be 0; raise one of them"
            )

    def _memory_misfits(self) -> Iterator[str]:
        """Yield those of what is trained and where it lies."""
        learner = self.learner
        least = {"none": 0, "optimizer": 1, "optimizer_and_parameters": 3}[learner.offload]
        if self.model.dtype == "bfloat16" and learner.zero_stage == 0:
            yield (
                "model.dtype = bfloat16 with learner.zero_stage = 0: DeepSpeed's optimizer begins with a step of zeros "
                "there, and all later ones are too short: set learner.zero_stage = 1"
            )
        limit = learner.max_logprob_gap
        if self.model.dtype == "bfloat16" and limit is not None and limit < _ROUNDING and self.sampled_prompts:
            yield (
                f"learner.max_logprob_gap = {limit:g} with model.dtype = bfloat16: rounding alone is more, and the run "
                "would stop at once: set learner.max_logprob_gap = null"
            )
        if learner.zero_stage < least:
            yield (
                f"learner.offload = {learner.offload} with learner.zero_stage = {learner.zero_stage}: "
                f"only what ZeRO partitions can be offloaded, from stage {least} on"
            )
        if self.lora.rank and self.model.freeze_vision and self.lora.targets == "language_and_vision":
            yield "model.freeze_vision = true with lora.targets = language_and_vision: choose one"
        if not self.lora.rank and self.checkpoint.export == "adapter":
            yield "checkpoint.export = adapter with lora.rank = 0: there is no adapter to write"

    def _evaluation_misfits(self) -> Iterator[str]:
        """Yield those of what is evaluated."""
        for name, place in self.evaluation.sets.items():
            if not place.strip().strip("@") or not name.strip():
                what = "names no place" if name.strip() else "has no name"
                yield f"evaluation.sets = {self.evaluation.sets}: the set {name!r} {what}; write NAME: PATH[@SPLIT]"
        yield from self._stop_misfits()
        largest, samples = max(self.evaluation.pass_at_k, default=0), self.evaluation.samples
        if largest > samples:
            yield (
                f"evaluation.pass_at_k = {self.evaluation.pass_at_k} with evaluation.samples = {samples}: "
                "no k above the samples can be measured"
            )

    def _stop_misfits(self) -> Iterator[str]:
        """Yield those of an end before the last step."""
        after, every, delta = self.evaluation.stop_after, self.evaluation.every, self.evaluation.stop_delta
        if after is None:
            if delta:
                yield f"evaluation.stop_delta = {delta:g} with evaluation.stop_after = null: it has no effect"
        elif not every:
            yield f"evaluation.stop_after = {after} with evaluation.every = 0: nothing is evaluated before the end"
        elif self.epochs is None and after * every >= self.steps:
            yield (
                f"evaluation.stop_after = {after} with evaluation.every = {every}: so many evaluations end no earlier "
                f"than steps = {self.steps}; lower one"
            )


def flatten(config: Config) -> dict[str, Any]:
    """Return {"rollout.engines": 1, ...}; a key whose value is a mapping (reward.functions) stays whole."""

    def walk(node: BaseModel, prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key in type(node).model_fields:
            value = getattr(node, key)
            flat |= walk(value, f"{prefix}{key}.") if isinstance(value, BaseModel) else {prefix + key: value}
        return flat

    return walk(config, "")


@cache
def keys_free_on_resume() -> frozenset[str]:
    """Return the keys that are marked `Free` or stand in a section that is: {"name", "rollout.engines", ...}."""
    free: set[str] = set()
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            marks = {f"{name}.{key}": (*field.metadata, *inner.metadata) for key, inner in section.model_fields.items()}
        else:
            marks = {name: tuple(field.metadata)}
        free |= {key for key, found in marks.items() if FREE_ON_RESUME in found}
    return frozenset(free)


def incompatible_keys(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose change would make a resumed run another run: {key: (old, new)}."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before[key], after[key])
        for key in sorted(before.keys() - keys_free_on_resume())
        if before[key] != after[key]
    }


def config_hash(config: Config) -> str:
    """Return twelve hex digits over every key that decides what is computed."""
    decisive = {key: value for key, value in flatten(config).items() if key not in keys_free_on_resume()}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:12]
