"""The whole configuration: frozen models, unknown keys are errors, cross-field checks at the door.

Class defaults are the seed's recipe for a real model (Qwen2-VL-2B, 16 prompts, G=4, lr 1e-6, beta 0.04). With no
`--config` the embedded recipe `deploy/recipes/digits.yaml` is read, which runs on a laptop.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.errors import ConfigError
from common.labels.answers import Mode

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]

FREE_ON_RESUME = "may change when a run is resumed: it says where the run runs or what it writes, not what it computes"
T = TypeVar("T")
Free = Annotated[T, FREE_ON_RESUME]  # marks a key, or a whole section; a key without this mark must stay as it was


EMBEDDED_MODEL = "embedded:tiny"
OBJECT_QUESTION = "What type of object is in the photo?"  # CLS-RL's, about most of its sets


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(_Section):
    """Which model is trained."""

    path: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Hub id or folder of a model that reads pictures, or `embedded:tiny`: 0.6 M parameters, made here for the data."""
    revision: str | None = None
    """Hub revision; pin it for a run that must be repeated."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the engines' weights and of the learner's forward."""
    min_pixels: Positive | None = None
    """The processor scales a smaller image up to this many pixels. The Qwens alone have such limits: null is 3136."""
    max_pixels: Positive | None = None
    """The processor scales a larger image down to this many pixels: null is 401408."""
    freeze_vision: bool = False
    """Leave what stands before the language model, vision tower and projector, as it is. Its features are then computed
    once a picture, and kept in `data.cache_mb`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: half the memory for about 15 % more time."""


class LoraConfig(_Section):
    """Adapters in place of the whole model: a fraction of the memory, and no second model for the reference."""

    rank: NonNegative = 0
    """Of the adapters; 0 trains the whole model."""
    alpha: Positive = 32
    """Adapters count alpha / rank times."""
    targets: Literal["language", "language_and_vision"] = "language"
    """Whose linear layers get adapters; nothing else trains."""


class DataConfig(_Section):
    """What it is trained and evaluated on."""

    path: str = "embedded:digits"
    """Hub name, `save_to_disk` folder, parquet file or folder, image folder (class = sub-folder), `embedded:digits`."""
    split: str = "train"
    eval_path: str | None = None
    """Held-out data; by default the same place as `path`."""
    eval_split: str | None = "test"
    """Held-out split; null evaluates nothing."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of `split` held out, stratified by label, where no split of its own is. 0: use `eval_split`."""
    image_size: Positive | None = 384
    """Every image is resized to this square (LANCZOS), as the seed does; null keeps its size."""
    mode: Mode = "no_think"
    """Ask for the bare label; for a `<think>` and an `<answer>` block; for `<answer>`, then `<reason>`; or let the
    model choose whether to think."""
    template: str | None = None
    """Your own wording of the prompt, which holds {problem} once; null is the mode's. The mode still says what a
    completion must look like."""
    aliases: dict[str, list[str]] = {}
    """Other names that count as a label, as in {aeroplane: [airplane, plane]}."""
    taxonomy: dict[str, str] = {}
    """The class above each class, as in {cat: mammal, mammal: animal}, for reward `taxonomy`."""
    question: str = OBJECT_QUESTION
    """Asked about image folders, which carry no question of their own; the class list is added."""
    reshuffle: Literal["none", "order", "draw"] = "none"
    """What a training question lists at each visit of its row: its list as it is; the same classes in a new order; or
    as many, drawn anew from those of the split, the right one among them. Held-out questions stay as they are."""
    max_prompt_tokens: Positive = 2048
    """A longer prompt is refused by name, never cut."""
    check_candidates: bool = True
    """Refuse a row whose label is not in the list its question offers."""
    max_image_megapixels: Annotated[float, Field(gt=0)] = 40.0
    cache_mb: Free[NonNegative] = 512
    """Host memory for the decoded images of each split, and as much again for what the processor makes of them."""
    timeout_s: Free[Seconds] = 600.0
    """How long a step's rows may take to be read and preprocessed."""


class RolloutConfig(_Section):
    """How completions are sampled."""

    engines: Free[Positive] = 1
    prompts_per_step: Positive = 16
    """P, groups a step, over all engines."""
    group_size: Annotated[int, Field(ge=2)] = 4
    """G, completions a prompt. An advantage needs at least two."""
    max_completion_tokens: Positive = 1024
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegative = 0
    """0 keeps every token."""
    max_sequences: Free[Positive] = 256
    """Sequences one engine decodes at once."""
    kv_cache_mb: Free[Positive | None] = None
    """KV cache of one engine; null takes `gpu_memory_utilization` of the device (64 MB on CPU)."""
    gpu_memory_utilization: Free[Annotated[float, Field(gt=0, le=1)]] = 0.85
    cpus_per_engine: Free[Annotated[float, Field(ge=0)]] = 1.0
    gpus_per_engine: Free[Annotated[float, Field(ge=0)]] = 1.0
    max_restarts: Free[NonNegative] = 3
    """Replacements of dead engines over the whole run before it stops."""
    start_timeout_s: Free[Seconds] = 900.0
    step_timeout_s: Free[Seconds] = 900.0
    """An engine that gives nothing for this long is taken for dead and replaced."""


class RewardConfig(_Section):
    """How completions are scored."""

    functions: dict[str, float] = Field(default={"accuracy": 1.0}, min_length=1)
    """Weight of each: a name in `rollout.rewards.REWARDS`, a dotted path `package.module:function`, or
    `model:<hub id or folder>` for a sequence-classification reward model."""
    normalise: Literal["sum", "each"] = "sum"
    """What is set against its group's mean and deviation: the weighted sum of the functions, or each function before
    the weighted sum, so that one with a small spread counts as its weight says."""
    length_target: Positive | None = None
    """Tokens of a completion, end of turn included, that reward `length` wants."""
    repetition_ngram: Positive = 3
    """Tokens in a row that reward `repetition` takes for one thing said."""
    on_error: Literal["stop", "drop"] = "stop"
    """When a reward raises, returns NaN, the wrong length or nothing: stop the run, or drop the group and count it."""
    max_drop_share: Free[Annotated[float, Field(ge=0, le=1)]] = 0.05
    """Stop when more than this share of the groups dispatched so far was dropped."""
    timeout_s: Free[Seconds] = 30.0
    """For one function on one group."""
    workers: Free[Positive] = 1
    cpus_per_worker: Free[Annotated[float, Field(ge=0)]] = 0.0


class LearnerConfig(_Section):
    """How weights are updated."""

    ranks: Positive = 1
    """DeepSpeed data-parallel ranks."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    """What waits in the host's memory instead of the GPU's: optimizer states (ZeRO 1 to 3), parameters too (ZeRO 3)."""
    lr: Annotated[float, Field(gt=0)] = 1e-6
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: NonNegative = 0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the KL to the frozen reference; 0 keeps no reference."""
    tokens_per_pack: Positive = 1024
    """Groups are packed into micro-batches of at most this many tokens (a larger group stands alone)."""
    attention: Literal["auto", "sdpa", "sparse", "flash", "flex"] = "auto"
    """How packs attend: sdpa under a dense mask, sparse blocks (CPU), flash (GPU, bfloat16) or flex-attention (GPU)."""
    logits_mb: Annotated[float, Field(gt=0)] = 512.0
    """Largest float32 block of logits; more tokens than it holds are scored a block at a time, and again backward."""
    max_logprob_gap: Annotated[float, Field(gt=0)] | None = None
    """Stop when engine and learner disagree by more than this on any sampled token; null only reports it."""
    probe_gap: Free[Annotated[float, Field(gt=0)] | None] = None
    """The same for a probe of a few tokens after each of the first two pushes, which always stops; null is 1e-3 in
    float32 and 0.5 in bfloat16."""
    cpus_per_rank: Free[Annotated[float, Field(ge=0)]] = 1.0
    gpus_per_rank: Free[Annotated[float, Field(ge=0)]] = 1.0
    start_timeout_s: Free[Seconds] = 900.0
    step_timeout_s: Free[Seconds] = 1800.0


class ExactConfig(_Section):
    """How `method: exact` learns from all candidates of a row."""

    advantage: Literal["raw", "normalised"] = "normalised"
    """Follow the expected reward itself, or rewards less their mean over their deviation, as GRPO does: it learns
    faster."""
    sampled_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a step's prompts that engines sample and GRPO learns from, which keeps free answers in line."""


class WeightsConfig(_Section):
    """How new weights reach the engines."""

    transport: Literal["object_store", "nccl"] = "object_store"
    """Ray's object store works anywhere; nccl needs GPUs on both sides."""
    bucket_mb: Positive = 256
    timeout_s: Seconds = 600.0


class EvaluationConfig(_Section):
    """Greedy decoding on the held-out split, before, every `every` steps and after."""

    every: NonNegative = 50
    """0: only before and after."""
    limit: Positive | None = None
    """Evaluate the first rows only."""
    closed_set: bool | None = None
    """Also choose the candidate with the highest log-prob, by the learner. null: in no-think mode, of sets in which
    every question offers a list; true refuses a set in which one does not."""
    sets: dict[str, str] = {}
    """Further sets, evaluated at the same times, as in {cars: some/folder@test, new: "@new_test"}: PATH[@SPLIT], and
    without a path a split of `data.path`. With `base` and `new` among them their harmonic mean H is reported too."""
    samples: NonNegative = 0
    """Answers sampled a row, as in training, beside the greedy one: for pass@k and majority@k."""
    pass_at_k: list[Positive] = []
    """The k of pass@k and majority@k; by default the powers of two up to `samples`."""


class CheckpointConfig(_Section):
    """What is kept on disk."""

    every: NonNegative = 50
    """Steps between checkpoints; 0 keeps none."""
    keep: Positive = 2
    """Newest ones kept, beside the best by `best_by`."""
    best_by: str = "accuracy"
    """Measure of the held-out rows that the best checkpoint has most of: accuracy, lenient, closed_set, macro_f1; of
    another set, `SET/accuracy`; or H."""
    export: bool | Literal["merged", "adapter"] = True
    """Write the final weights in Hugging Face layout, adapters `merged` into them (as `true` does), or the `adapter`
    alone in PEFT's."""


class TrackingConfig(_Section):
    """What is written about the run. metrics.jsonl and TensorBoard always are."""

    samples_every: NonNegative = 10
    """Steps between kept samples (prompt, image, completions, rewards)."""
    samples: Positive = 2
    """Groups kept each time, beside those of highest and lowest reward."""
    profile_steps: tuple[NonNegative, NonNegative] | None = None
    """First step, and the one after the last, of which every process writes a torch trace into the run's `profile/`;
    `--profile steps=3:5` sets it."""


class ClusterConfig(_Section):
    """Where it runs."""

    address: str | None = None
    """Ray address; null: RAY_ADDRESS if set (as under `ray job submit`), else a cluster of its own on this machine."""
    device: Literal["cpu", "cuda"] = "cuda"
    threads: Positive = 1
    """OMP threads of each process. Spinning threads of several processes on the same cores run 5 to 15 times slower."""
    wait_for_resources_s: Annotated[float, Field(ge=0)] = 0.0
    """How long to wait for nodes to join before saying what is missing (autoscaling clusters)."""


class Config(_Section):
    """One run."""

    seed: int = 1
    steps: Positive = 250
    epochs: Positive | None = None
    """In place of `steps`: passes over the training rows, turned into steps once they are counted."""
    method: Literal["grpo", "exact", "sft"] = "grpo"
    """Learn from G sampled answers a prompt; from all its candidates, each weighted with its probability; or from its
    label alone."""
    run_dir: Free[Path | None] = None
    """Folder of the run; by default `runs/<date>-<name>`."""
    name: Free[str] = "run"
    resume: Free[str | None] = None
    """`auto`: the newest sound checkpoint of the run folder (or of `runs/latest`), a fresh start if there is none.
    A path: that run folder or checkpoint."""
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    exact: ExactConfig = ExactConfig()
    weights: Free[WeightsConfig] = WeightsConfig()
    evaluation: Free[EvaluationConfig] = EvaluationConfig()
    checkpoint: Free[CheckpointConfig] = CheckpointConfig()
    tracking: Free[TrackingConfig] = TrackingConfig()
    cluster: Free[ClusterConfig] = ClusterConfig()

    @property
    def towers_frozen(self) -> bool:
        """Nothing that stands before the language model is trained."""
        return self.model.freeze_vision or (self.lora.rank > 0 and self.lora.targets == "language")

    @property
    def loss(self) -> str:
        """Name in `learner.objective.LOSSES` of the method's own loss."""
        return f"exact_{self.exact.advantage}" if self.method == "exact" else self.method

    @property
    def sampled_prompts(self) -> int:
        """Prompts of a step that engines sample; the others' completions are written down."""
        share = {"grpo": 1.0, "exact": self.exact.sampled_share, "sft": 0.0}[self.method]
        return round(share * self.rollout.prompts_per_step)

    def with_epochs_as_steps(self, rows: int) -> Config:
        """With `epochs` turned into the steps they take over `rows` training rows, the last one filled up.

        Raises:
            ConfigError: what is said in steps does not fit them.
        """
        if self.epochs is None:
            return self
        steps = math.ceil(rows * self.epochs / self.rollout.prompts_per_step)
        config = self.model_copy(update={"steps": steps, "epochs": None})
        if misfits := list(config._misfits()):  # noqa: SLF001  # its own kind
            raise ConfigError(
                f"epochs = {self.epochs} over {rows} rows are {steps} steps, and another key does not fit them",
                got="; ".join(misfits),
                remedy="correct the key named, or raise epochs",
            )
        return config

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if misfits := list(self._misfits()):
            raise ValueError("\n".join(misfits))
        return self

    def _misfits(self) -> Iterator[str]:
        """One line for each impossible combination, which names its keys as `section.key = value`."""
        learner, rollout, on_cpu = self.learner, self.rollout, self.cluster.device == "cpu"
        if rollout.prompts_per_step % learner.ranks:
            yield (
                f"learner.ranks = {learner.ranks} does not divide rollout.prompts_per_step = "
                f"{rollout.prompts_per_step}: make one a multiple of the other"
            )
        gpus = {"learner.gpus_per_rank": learner.gpus_per_rank, "rollout.gpus_per_engine": rollout.gpus_per_engine}
        for key, count in gpus.items():
            if on_cpu and count:
                yield f"cluster.device = cpu with {key} = {count:g}: set {key} to 0"
        if on_cpu and self.weights.transport == "nccl":
            yield "weights.transport = nccl needs cluster.device = cuda: use object_store on CPU"
        if self.epochs is not None and "steps" in self.model_fields_set:
            yield f"steps = {self.steps} with epochs = {self.epochs}: leave one out"
        if self.epochs is None and learner.warmup_steps >= self.steps:
            yield f"learner.warmup_steps = {learner.warmup_steps} leaves no step of steps = {self.steps}: lower it"
        least, most = self.model.min_pixels, self.model.max_pixels
        if least is not None and most is not None and least > most:
            yield f"model.min_pixels = {least} is above model.max_pixels = {most}"
        if self.tracking.profile_steps and self.tracking.profile_steps[0] >= self.tracking.profile_steps[1]:
            first, end = self.tracking.profile_steps
            yield f"tracking.profile_steps = [{first}, {end}] holds no step: the second is the one after the last"
        if self.data.template is not None and (times := self.data.template.count("{problem}")) != 1:
            yield f"data.template = {self.data.template!r} holds {{problem}} {times} times: it must be there once"
        yield from self._trained_misfits()
        yield from self._measured_misfits()
        yield from self._method_misfits()

    def _method_misfits(self) -> Iterator[str]:
        """Those of how it is trained."""
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

    def _trained_misfits(self) -> Iterator[str]:
        """Those of what is trained and where it lies."""
        learner = self.learner
        if self.cluster.device == "cpu" and learner.offload != "none":
            yield f"learner.offload = {learner.offload} with cluster.device = cpu: all is in the host's memory already"
        least = {"none": 0, "optimizer": 1, "optimizer_and_parameters": 3}[learner.offload]
        if self.model.dtype == "bfloat16" and learner.zero_stage == 0:
            yield (
                "model.dtype = bfloat16 with learner.zero_stage = 0: DeepSpeed's optimizer begins with a step of zeros "
                "there, and all later ones are too short: set learner.zero_stage = 1"
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

    def _measured_misfits(self) -> Iterator[str]:
        """Those of what is evaluated."""
        largest, samples = max(self.evaluation.pass_at_k, default=0), self.evaluation.samples
        if largest > samples:
            yield (
                f"evaluation.pass_at_k = {self.evaluation.pass_at_k} with evaluation.samples = {samples}: "
                "no k above the samples can be measured"
            )


def flatten(config: Config) -> dict[str, Any]:
    """{"rollout.engines": 1, ...}; a mapping valued key (reward.functions) stays whole."""

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
