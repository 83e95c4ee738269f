"""The whole configuration: frozen models, in which unknown keys and impossible combinations are errors.

Class defaults are CLS-RL's recipe for a real model (Qwen2-VL-2B, 16 prompts, G=4, lr 1e-6, beta 0.04). With no
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
    """The model that is trained."""

    path: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Hub id or folder of a model that reads pictures. `embedded:tiny` is one of 0.6 M parameters, made here for the
    data."""
    revision: str | None = None
    """Hub revision of the model; null is the newest. Pin it for a run that must be repeated."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the engines' weights and of the learner's forward pass. float32 for a CPU or for exact comparisons."""
    min_pixels: Positive | None = None
    """The processor scales a smaller image up to this many pixels. Only the Qwens have such limits; null is 3136."""
    max_pixels: Positive | None = None
    """The processor scales a larger image down to this many pixels. Only the Qwens have such limits; null is 401408.
    Lower it for shorter prompts."""
    freeze_vision: bool = False
    """Do not train the vision tower and the projector. Their features are then computed once a picture and kept in
    `data.cache_mb`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: half the memory for about 15 % more time."""


class LoraConfig(_Section):
    """Adapters (LoRA) that are trained in place of the whole model: less memory, and no second model as reference."""

    rank: NonNegative = 0
    """Rank of the adapters; 0 trains the whole model."""
    alpha: Positive = 32
    """Scale of the adapters: what they add is multiplied by alpha / rank."""
    targets: Literal["language", "language_and_vision"] = "language"
    """Parts of the model in which every linear layer gets an adapter. Nothing else is trained."""


class DataConfig(_Section):
    """The data that the model is trained and evaluated on."""

    path: str = "embedded:digits"
    """Training data: a hub name, a `save_to_disk` folder, a parquet file or folder, or `embedded:digits`. Also an image
    folder, with a subfolder for each class."""
    split: str = "train"
    """Split of `path` to train on."""
    eval_path: str | None = None
    """Held-out data, in any of the forms of `path`; null is the same place as `path`."""
    eval_split: str | None = "test"
    """Held-out split; null evaluates nothing."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of `split` that is held out, stratified by label, where there is no held-out split. 0: `eval_split`."""
    image_size: Positive | None = 384
    """Every image is resized to a square of this many pixels a side (LANCZOS), as in CLS-RL. null keeps its size."""
    mode: Mode = "no_think"
    """Form of an answer. no_think: the bare label. think: a `<think>` block, then an `<answer>` block.
    think_after_answer: `<answer>`, then `<reason>`. adaptive: the model chooses whether to think."""
    template: str | None = None
    """Your own wording of the prompt, which holds {problem} once; null is the mode's. The mode still decides the form
    of an answer."""
    aliases: dict[str, list[str]] = {}
    """Other names that count as a label, as in {aeroplane: [airplane, plane]}."""
    taxonomy: dict[str, str] = {}
    """The class above each class, as in {cat: mammal, mammal: animal}, for reward `taxonomy`."""
    question: str = OBJECT_QUESTION
    """Question about every picture of an image folder, which carries none; the class list is added to it."""
    reshuffle: Literal["none", "order", "draw"] = "none"
    """Class list of a training question at each visit of its row. none: as it is. order: the same classes in a new
    order. draw: as many classes of the split, drawn anew, with the right one. Held-out questions stay as they are."""
    max_prompt_tokens: Positive = 2048
    """Most tokens of a prompt, image tokens included. A longer prompt is refused by name, never cut."""
    check_candidates: bool = True
    """Refuse a row whose label is not in the list its question offers."""
    max_image_megapixels: Annotated[float, Field(gt=0)] = 40.0
    """A larger image is refused before it is decoded. Raise it for sound pictures that are larger."""
    cache_mb: Free[NonNegative] = 512
    """Host memory in MB for the decoded images of each split, and as much again for their processed features."""
    timeout_s: Free[Seconds] = 600.0
    """Seconds that the rows of a step may take to be read and processed. Raise it for a slow disk."""


class RolloutConfig(_Section):
    """How completions are sampled."""

    engines: Free[Positive] = 1
    """vLLM engines that sample at the same time, each in a process of its own. Raise it to sample faster."""
    prompts_per_step: Positive = 16
    """P, the prompts of a step over all engines: one group each."""
    group_size: Annotated[int, Field(ge=2)] = 4
    """G, completions a prompt. An advantage needs at least two."""
    max_completion_tokens: Positive = 1024
    """Most tokens of a completion, end of turn included. Raise it where completions are cut."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softmax temperature of sampling and of the learner's log-probs. Higher explores more."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability; 1 keeps every token."""
    top_k: NonNegative = 0
    """Sample from this many of the likeliest tokens; 0 keeps every token."""
    max_sequences: Free[Positive] = 256
    """Completions that one engine decodes at the same time. Lower it where memory is short."""
    kv_cache_mb: Free[Positive | None] = None
    """KV cache of one engine in MB. null takes `gpu_memory_utilization` of a GPU, or 64 MB on a CPU."""
    gpu_memory_utilization: Free[Annotated[float, Field(gt=0, le=1)]] = 0.85
    """Share of the GPU's memory that one engine may use. Lower it where a GPU is shared."""
    cpus_per_engine: Free[Annotated[float, Field(ge=0)]] = 1.0
    """CPUs that one engine reserves in Ray; fractions share a core."""
    gpus_per_engine: Free[Annotated[float, Field(ge=0)]] = 1.0
    """GPUs that one engine reserves in Ray; a fraction shares a GPU, 0 is for a CPU."""
    max_restarts: Free[NonNegative] = 3
    """Dead engines that are replaced over the whole run before it stops."""
    start_timeout_s: Free[Seconds] = 900.0
    """Seconds that an engine may take to start. Raise it for a large model on a slow disk."""
    step_timeout_s: Free[Seconds] = 900.0
    """An engine that gives no group for this many seconds counts as dead and is replaced."""


class RewardConfig(_Section):
    """How completions are scored."""

    functions: dict[str, float] = Field(default={"accuracy": 1.0}, min_length=1)
    """Weight of each reward function. One is a name in `rollout.rewards.REWARDS` or a dotted path
    `package.module:function`. `model:<hub id or folder>` is a sequence-classification reward model."""
    normalise: Literal["sum", "each"] = "sum"
    """What is compared with the mean and deviation of its group. sum: the weighted sum of the functions. each: every
    function before it is weighted, so that one with a small spread counts as its weight says."""
    length_target: Positive | None = None
    """Tokens of a completion, end of turn included, that reward `length` wants."""
    repetition_ngram: Positive = 3
    """Length in tokens of the sequences that reward `repetition` counts as repeated."""
    on_error: Literal["stop", "drop"] = "stop"
    """When a reward raises, or returns NaN, a wrong number of values or nothing: stop the run, or drop the group and
    count it."""
    max_drop_share: Free[Annotated[float, Field(ge=0, le=1)]] = 0.05
    """Stop the run when more than this share of the groups dispatched so far was dropped."""
    timeout_s: Free[Seconds] = 30.0
    """Seconds that one function may take for one group."""
    workers: Free[Positive] = 1
    """Processes that score groups at the same time. Raise it for slow functions."""
    cpus_per_worker: Free[Annotated[float, Field(ge=0)]] = 0.0
    """CPUs that one of these processes reserves in Ray; 0 for functions that take almost no time."""


class LearnerConfig(_Section):
    """How weights are updated."""

    ranks: Positive = 1
    """DeepSpeed data-parallel ranks, each a process. It must divide `rollout.prompts_per_step`."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """ZeRO stage. 0 partitions nothing, 1 the optimizer states, 2 gradients too, 3 parameters too: less memory a rank,
    more communication."""
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    """What lies in host memory instead of the GPU's: optimizer states (ZeRO 1 to 3), or parameters too (ZeRO 3)."""
    lr: Annotated[float, Field(gt=0)] = 1e-6
    """Peak learning rate of AdamW. LoRA wants about ten times that of the whole model."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up. linear and cosine fall towards 0 at the end of the run."""
    warmup_steps: NonNegative = 0
    """Steps over which the learning rate climbs to its peak. Raise it where the first steps are unstable."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of AdamW's two moving averages, of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's addition to the denominator, against division by zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of every weight, times the learning rate, that AdamW takes off at each step."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient over all ranks; a larger gradient is scaled down to it."""
    beta: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the KL to the frozen reference model; 0 keeps no reference. Raise it to stay closer to the first
    model."""
    tokens_per_pack: Positive = 1024
    """Most tokens of a pack, the micro-batch of whole groups; a larger group is one alone. Lower it where memory is
    short."""
    attention: Literal["auto", "sdpa", "sparse", "flash", "flex"] = "auto"
    """How the tokens of a pack attend. sdpa: under a dense mask. sparse: in blocks (CPU). flash: FlashAttention (GPU,
    bfloat16). flex: flex-attention (GPU). auto: the fastest of them that works here."""
    logits_mb: Annotated[float, Field(gt=0)] = 512.0
    """Largest float32 block of logits in MB. More tokens are scored block by block, once forward and once backward.
    Lower it where memory is short."""
    max_logprob_gap: Annotated[float, Field(gt=0)] | None = None
    """Stop when engine and learner disagree by more than this log-prob on any sampled token; null only reports it."""
    probe_gap: Free[Annotated[float, Field(gt=0)] | None] = None
    """The same limit for a probe of a few tokens after each of the first two pushes, which always stops. null is 1e-3
    in float32 and 0.5 in bfloat16."""
    cpus_per_rank: Free[Annotated[float, Field(ge=0)]] = 1.0
    """CPUs that one rank reserves in Ray; fractions share a core."""
    gpus_per_rank: Free[Annotated[float, Field(ge=0)]] = 1.0
    """GPUs that one rank reserves in Ray; 0 is for a CPU."""
    start_timeout_s: Free[Seconds] = 900.0
    """Seconds that all ranks may take to start. Raise it for a large model on a slow disk."""
    step_timeout_s: Free[Seconds] = 1800.0
    """Seconds that an optimizer step, or any other call of the ranks, may take."""


class ExactConfig(_Section):
    """How `method: exact` learns from all candidates of a row."""

    advantage: Literal["raw", "normalised"] = "normalised"
    """raw follows the expected reward itself. normalised takes rewards less their mean over their deviation, as GRPO
    does, and learns faster."""
    sampled_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a step's prompts that engines sample and GRPO learns from, which keeps free answers in line."""


class WeightsConfig(_Section):
    """How new weights reach the engines."""

    transport: Literal["object_store", "nccl"] = "object_store"
    """Ray's object store works anywhere; nccl needs GPUs on both sides."""
    bucket_mb: Positive = 256
    """Most MB of weights that travel as one object or one broadcast; a larger tensor is one alone."""
    timeout_s: Seconds = 600.0
    """Seconds that the engines may take to load a version of the weights."""


class EvaluationConfig(_Section):
    """Greedy decoding of the held-out rows: before the first step, every `every` steps, and after the last."""

    every: NonNegative = 50
    """Steps between evaluations; 0 evaluates only before and after."""
    limit: Positive | None = None
    """Evaluate only so many rows of each set, the first ones; null evaluates all."""
    closed_set: bool | None = None
    """Also choose the candidate with the highest log-prob, by the learner. null: in no-think mode, for sets in which
    every question offers a list. true refuses a set in which one does not."""
    sets: dict[str, str] = {}
    """Further sets, evaluated at the same times, as in {cars: some/folder@test, new: "@new_test"}: PATH[@SPLIT], where
    no path means a split of `data.path`. With `base` and `new` among them their harmonic mean H is reported too."""
    samples: NonNegative = 0
    """Answers sampled a row, as in training, beside the greedy one: for pass@k and majority@k."""
    pass_at_k: list[Positive] = []
    """The k of pass@k and majority@k; by default the powers of two up to `samples`."""


class CheckpointConfig(_Section):
    """What is kept on disk to resume from and to use."""

    every: NonNegative = 50
    """Steps between checkpoints; 0 keeps none."""
    keep: Positive = 2
    """Newest checkpoints that are kept, beside the best by `best_by`."""
    best_by: str = "accuracy"
    """Measure by which a checkpoint is the best. Of the held-out rows: accuracy, lenient, closed_set, macro_f1. Of
    another set: `SET/accuracy`. Of base and new: H."""
    export: bool | Literal["merged", "adapter"] = True
    """Write the final weights in Hugging Face layout. true and merged: adapters merged into them. adapter: the adapter
    alone, in PEFT's layout. false: nothing."""


class TrackingConfig(_Section):
    """What is written about the run, beside metrics.jsonl and TensorBoard."""

    samples_every: NonNegative = 10
    """Steps between kept samples (prompt, image, completions, rewards)."""
    samples: Positive = 2
    """Groups that are kept each time, beside those of highest and lowest reward."""
    profile_steps: tuple[NonNegative, NonNegative] | None = None
    """First step, and the one after the last, of which every process writes a torch trace into the run's `profile/`.
    `--profile steps=3:5` sets it."""


class ClusterConfig(_Section):
    """Where the run runs."""

    address: str | None = None
    """Ray address. null: RAY_ADDRESS if set (as under `ray job submit`), else a cluster of its own on this machine."""
    device: Literal["cpu", "cuda"] = "cuda"
    """Device of every engine and every rank."""
    threads: Positive = 1
    """OMP threads of each process. Processes whose threads share cores run 5 to 15 times slower."""
    wait_for_resources_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds to wait for nodes to join before the run says what is missing; for autoscaling clusters."""


class Config(_Section):
    """One run."""

    seed: int = 1
    """Seed of every random draw, as row order and sampling. Change it to repeat a run independently."""
    steps: Positive = 250
    """Optimizer steps of the run."""
    epochs: Positive | None = None
    """Passes over the training rows, in place of `steps`; turned into steps once the rows are counted."""
    method: Literal["grpo", "exact", "sft"] = "grpo"
    """grpo: learn from G sampled answers a prompt. exact: from all candidates of the row, each weighted with its
    probability. sft: from the label alone."""
    run_dir: Free[Path | None] = None
    """Folder of the run; by default `runs/<date>-<name>`."""
    name: Free[str] = "run"
    """Name of the run, for its folder and its report."""
    resume: Free[str | None] = None
    """auto: go on from the newest sound checkpoint of the run folder, or of `runs/latest`; without one, start afresh.
    A path: go on from that run folder or checkpoint."""
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
        """Whether nothing before the language model, vision tower and projector, is trained."""
        return self.model.freeze_vision or (self.lora.rank > 0 and self.lora.targets == "language")

    @property
    def loss(self) -> str:
        """The name in `learner.objective.LOSSES` of the method's own loss."""
        return f"exact_{self.exact.advantage}" if self.method == "exact" else self.method

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
                remedy="correct the key named, or raise epochs",
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
        yield from self._device_misfits()
        yield from self._data_misfits()
        yield from self._memory_misfits()
        yield from self._evaluation_misfits()
        yield from self._method_misfits()

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
        if self.epochs is None and learner.warmup_steps >= self.steps:
            yield f"learner.warmup_steps = {learner.warmup_steps} leaves no step of steps = {self.steps}: lower it"
        if self.tracking.profile_steps and self.tracking.profile_steps[0] >= self.tracking.profile_steps[1]:
            first, end = self.tracking.profile_steps
            yield f"tracking.profile_steps = [{first}, {end}] holds no step: the second is the one after the last"

    def _device_misfits(self) -> Iterator[str]:
        """Yield those of a run on a CPU."""
        if self.cluster.device != "cpu":
            return
        learner, rollout = self.learner, self.rollout
        gpus = {"learner.gpus_per_rank": learner.gpus_per_rank, "rollout.gpus_per_engine": rollout.gpus_per_engine}
        for key, count in gpus.items():
            if count:
                yield f"cluster.device = cpu with {key} = {count:g}: set {key} to 0"
        if self.weights.transport == "nccl":
            yield "weights.transport = nccl needs cluster.device = cuda: use object_store on CPU"
        if learner.offload != "none":
            yield f"learner.offload = {learner.offload} with cluster.device = cpu: all is in the host's memory already"

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

    def _memory_misfits(self) -> Iterator[str]:
        """Yield those of what is trained and where it lies."""
        learner = self.learner
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

    def _evaluation_misfits(self) -> Iterator[str]:
        """Yield those of what is evaluated."""
        largest, samples = max(self.evaluation.pass_at_k, default=0), self.evaluation.samples
        if largest > samples:
            yield (
                f"evaluation.pass_at_k = {self.evaluation.pass_at_k} with evaluation.samples = {samples}: "
                "no k above the samples can be measured"
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
