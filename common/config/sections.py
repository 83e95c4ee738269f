"""The sections of the configuration: every key with its type, its default and a docstring that `--help` prints.

Defaults are CLS-RL's recipe for a real model (Qwen2-VL-2B, 16 prompts, G=4, lr 1e-6, beta 0.04).
"""

from __future__ import annotations

import os
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from common.labels.answers import Mode

LARGEST_INT = 2**31 - 1  # what counters, tensors and sockets of third parties hold
Positive = Annotated[int, Field(ge=1, le=LARGEST_INT)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Pixels = Annotated[int, Field(ge=1, le=4096**2)]
Processes = Annotated[int, Field(ge=1, le=1024)]
ProcessRange = Annotated[dict[Literal["min", "max"], Processes], Field(min_length=2)]
MOST_ANSWERS = 16384  # to one prompt: vLLM takes no more
Answers = Annotated[int, Field(ge=0, le=MOST_ANSWERS)]
LONGEST_WAIT_S = 2e6  # 23 days: sockets count their waits in milliseconds, in 31 bits
Seconds = Annotated[float, Field(gt=0, le=LONGEST_WAIT_S)]
Decay = Annotated[float, Field(ge=0, le=0.999999)]  # in float32 more is 1, and divides by zero
Scale = Annotated[float, Field(ge=1e-30, le=1e30)]  # a positive number that float32 holds
Amount = Annotated[float, Field(ge=0, le=10_000)]  # of CPUs or GPUs
Seed = Annotated[int, Field(ge=0, lt=2**64)]  # numpy takes none below, torch none above


def _read_infinity(given: object) -> object:
    """Return "inf" for YAML's ".inf"."""
    return "inf" if given == ".inf" else given


LEAST_GAP = 1e-6  # float32's own rounding of a log-prob
GapLimit = Annotated[float, Field(gt=0, allow_inf_nan=True), BeforeValidator(_read_infinity)]
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
LabelValue = Annotated[str, Field(pattern=rf"^(!?{_WORD}|!?in\({_WORD}( *, *{_WORD})*\))$")]  # as in Ray's selectors
Labels = Annotated[dict[str, LabelValue], Field(min_length=1)]


def _read_labels(given: object) -> object:
    """Return a list of mappings for what may be one mapping, or text as `ray start --labels` takes it: role=learner."""
    if isinstance(given, str):
        pairs = [pair.partition("=") for pair in given.split(",")]
        given = {name.strip(): value.strip() for name, _, value in pairs}
    return [given] if isinstance(given, dict) else given


Preferences = Annotated[list[Labels], BeforeValidator(_read_labels)]

FREE_ON_RESUME = "may change when a run is resumed: it says where the run runs or what it writes, not what it computes"
T = TypeVar("T")
Free = Annotated[T, FREE_ON_RESUME]  # marks a key, or a whole section; a key without this mark must stay as it was


EMBEDDED_MODEL = "embedded:tiny"
LOCAL_CLUSTER = "local"  # Ray's word
OBJECT_QUESTION = "What type of object is in the photo?"  # CLS-RL's, about most of its sets


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(Section):
    """The model that is trained."""

    path: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Hub id or folder of a model that reads pictures. `embedded:tiny` is one of 0.6 M parameters, made here for the
    data."""
    revision: str | None = None
    """Hub revision of the model; null is the newest. Pin it for a run that must be repeated."""
    trust_remote_code: bool = False
    """Run Python code that lies beside the weights, in every process. A hub model then needs a commit as `revision`."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the engines' weights and of the learner's forward pass. float32 for a CPU or for exact comparisons."""
    min_pixels: Pixels | None = None
    """The processor scales a smaller image up to this many pixels. Only the Qwens have such limits; null is 3136."""
    max_pixels: Pixels | None = None
    """The processor scales a larger image down to this many pixels. Only the Qwens have such limits; null is 401408.
    Lower it for shorter prompts."""
    freeze_vision: bool = False
    """Do not train the vision tower and the projector. Their features are then computed once a picture and kept in
    `data.cache_mb`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: half the memory for about 15 % more time."""


class LoraConfig(Section):
    """Adapters (LoRA) that are trained in place of the whole model: less memory, and no second model as reference."""

    rank: Annotated[int, Field(ge=0, le=16384)] = 0
    """Rank of the adapters; 0 trains the whole model."""
    alpha: Positive = 32
    """Scale of the adapters: what they add is multiplied by alpha / rank."""
    targets: Literal["language", "language_and_vision"] = "language"
    """Parts of the model in which every linear layer gets an adapter. Nothing else is trained."""


class DataConfig(Section):
    """The data that the model is trained and evaluated on."""

    path: str = "embedded:digits"
    """Training data: a hub name, a `save_to_disk` folder, a parquet file or folder, or `embedded:digits`. Also an image
    folder, with a subfolder for each class. A resumed run may find the same rows elsewhere."""
    split: str = "train"
    """Split of `path` to train on: its own name, or what that says. `train` finds `Training` and `seg_train`."""
    eval_path: str | None = None
    """Held-out data, in any of the forms of `path`; null is the same place as `path`."""
    eval_split: str | None = "test"
    """Held-out split; null evaluates nothing."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of `split` that is held out, stratified by label, where there is no held-out split. 0: `eval_split`."""
    image_size: Annotated[int, Field(ge=4, le=4096)] | None = 384
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
    check_copies: Free[bool] = True
    """Refuse to train on one picture under two labels of the same question. false only warns of it."""
    max_image_megapixels: Annotated[float, Field(gt=0, le=178)] = 40.0
    """A larger image is refused before it is decoded. Raise it for sound pictures that are larger; Pillow reads up to
    178."""
    cache_mb: Free[NonNegative] = 512
    """Host memory in MB for the images of each split, and as much again for their prompts. Every engine and rank that
    reads large images keeps as much of their processed features."""
    timeout_s: Free[Seconds] = 600.0
    """Seconds that the rows of a step may take to be read and processed. Raise it for a slow disk."""


class RolloutConfig(Section):
    """How completions are sampled."""

    engines: Free[Processes | ProcessRange] = 1
    """vLLM engines that sample at the same time, each in a process of its own. Raise it to sample faster. {min: 1, max:
    8} begins with the least, and adds engines while the learner waits for them. `python -m rollout.scale RUN N` sets
    the number of a run that is under way."""
    prompts_per_step: Positive = 16
    """P, the prompts of a step over all engines: one group each."""
    max_lag: Annotated[int, Field(ge=0, le=4)] = 0
    """Steps that engines are ahead of the learner: the batch of step s is sampled with the weights of step s - max_lag.
    With 1 or more, engines sample while the learner learns. What the age of the weights changes is corrected for."""
    update: Literal["between", "in_flight"] = "between"
    """When engines take newer weights. between: when they have sampled a batch. in_flight: amid it, between two tokens,
    which takes `max_lag` of 1 or more. What is said so far is read anew, and each token says which weights sampled it.
    Such a run follows the clock: it keeps a journal of all answers, from which it can be repeated. Good for long
    thoughts."""
    replay: Free[str | None] = None
    """Run folder whose journal this run follows: it learns from the same answers, to the same weights, and samples none
    of them. Both have `update: in_flight`. Where the journal ends, engines go on."""
    group_size: Annotated[Answers, Field(ge=2)] = 4
    """G, completions a prompt. An advantage needs at least two."""
    max_completion_tokens: Positive = 1024
    """Most tokens of a completion, end of turn included. Raise it where completions are cut."""
    temperature: Annotated[float, Field(ge=0.01, le=2)] = 1.0
    """Softmax temperature of sampling and of the learner's log-probs. Higher explores more. vLLM takes 0.01 to 2."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability; 1 keeps every token."""
    top_k: NonNegative = 0
    """Sample from this many of the likeliest tokens; 0 keeps every token."""
    max_sequences: Free[Annotated[int, Field(ge=1, le=8192)]] = 256
    """Completions that one engine decodes at the same time. Lower it where memory is short."""
    kv_cache_mb: Free[Positive | None] = None
    """KV cache of one engine in MB. null takes `gpu_memory_utilization` of a GPU, or 64 MB on a CPU."""
    gpu_memory_utilization: Free[Annotated[float, Field(gt=0, le=1)]] = 0.85
    """Share of the GPU's memory that one engine may use. Lower it where a GPU is shared."""
    cpus_per_engine: Free[Amount] = 1.0
    """CPUs that one engine reserves in Ray; fractions share a core."""
    labels: Free[Preferences] = []
    """Labels of the Ray nodes that engines go to, as in `role=rollout` or {role: rollout}; empty takes any node. A list
    is tried in order, as in [{market: spot}, {market: on-demand}]."""
    gpus_per_engine: Free[Amount] = 1.0
    """GPUs that one engine reserves in Ray: 1, a fraction to share a GPU, or 0 on a CPU."""
    max_restarts: Free[NonNegative] = 3
    """Replacements of one engine in a row that may be lost before they give a group. Then its place is given up. The
    run goes on as long as another engine is left."""
    start_timeout_s: Free[Seconds] = 900.0
    """Seconds that an engine may take to start. Raise it for a large model on a slow disk."""
    step_timeout_s: Free[Seconds] = 900.0
    """Most seconds that an engine may stand still while it samples, before it is replaced. Once its pace is known it
    gets 20 times its longest step, at least 10 s (60 on a GPU)."""

    @property
    def min_engines(self) -> int:
        """The engines that a run begins with, and whose places it reserves."""
        return self.engines if isinstance(self.engines, int) else self.engines["min"]

    @property
    def max_engines(self) -> int:
        """The most engines that the run takes by itself."""
        return self.engines if isinstance(self.engines, int) else self.engines["max"]


class SignalConfig(Section):
    """Which prompts a step asks, and how often, so that its groups teach. All of it is off by default."""

    max_prompts: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """Most prompts of a step, as a multiple of `rollout.prompts_per_step`. Above 1 another prompt is asked for each
    sampled group whose rewards are all equal (DAPO's dynamic sampling). At the bound the first such groups stay: a step
    always trains on as many groups."""
    max_seconds: Free[Seconds | None] = None
    """Seconds of a step after which no further prompt is asked; null has no such bound. When it acts, a repeated run
    may differ."""
    skip_solved: NonNegative = 0
    """Pass over a row once all its completions were right in this many visits in a row; 0 passes over none."""
    skip_epochs: Positive = 1
    """Epochs for which such a row is passed over. Then it is asked again."""
    curriculum: Literal["none", "learnability"] = "none"
    """learnability: ask a row that was asked before with chance 4p(1-p) in an epoch, and at least 0.1. p is the share
    of its completions that were right."""
    max_group_size: Annotated[Answers, Field(ge=3)] | None = None
    """Most completions of a prompt where they are dealt out by what they may teach; null gives G to each. Rows that are
    sometimes right get more, those always right 2. Their sum stays the same."""


class RewardConfig(Section):
    """How completions are scored."""

    functions: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(default={"accuracy": 1.0}, min_length=1)
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
    workers: Free[Processes] = 1
    """Processes that score groups at the same time. Raise it for slow functions."""
    cpus_per_worker: Free[Amount] = 0.0
    """CPUs that one of these processes reserves in Ray; 0 for functions that take almost no time."""


class LearnerConfig(Section):
    """How weights are updated."""

    ranks: Processes = 1
    """DeepSpeed data-parallel ranks, each a process. It must divide `rollout.prompts_per_step`."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """ZeRO stage. 0 partitions nothing, 1 the optimizer states, 2 gradients too, 3 parameters too: less memory a rank,
    more communication."""
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    """What lies in host memory instead of the GPU's: optimizer states (ZeRO 1 to 3), or parameters too (ZeRO 3)."""
    lr: Annotated[Scale, Field(le=1)] = 1e-6
    """Peak learning rate of AdamW. LoRA wants about ten times that of the whole model."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up. linear and cosine fall towards 0 at the end of the run."""
    warmup_steps: NonNegative = 0
    """Steps over which the learning rate climbs to its peak. Raise it where the first steps are unstable."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of AdamW's two moving averages, of the gradient and of its square."""
    eps: Annotated[Scale, Field(le=1)] = 1e-8
    """AdamW's addition to the denominator, against division by zero."""
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Share of every weight, times the learning rate, that AdamW takes off at each step."""
    grad_clip: Annotated[Scale, Field(ge=1e-6)] = 1.0
    """Largest norm of the gradient over all ranks; a larger gradient is scaled down to it."""
    beta: Annotated[float, Field(ge=0, le=1e6)] = 0.04
    """Weight of the KL to the frozen reference model; 0 keeps no reference. Raise it to stay closer to the first
    model."""
    reference_reset_every: Positive | None = None
    """Steps after which the reference model becomes the policy as it then is; null never. Lower it where the KL holds
    the policy back."""
    reference_ema: Annotated[float, Field(ge=0.01, le=0.999999)] | None = None
    """Share of the reference model that stays at each step, as 0.99; the rest becomes the policy. null: all stays."""
    ranges: Positive = 1
    """Parts into which the prompts of a step are divided, in order. A part is learned while the next one is sampled;
    the optimizer step follows the last. Raise it where sampling and learning take about as long."""
    tokens_per_pack: Positive = 1024
    """Most tokens of a pack, the micro-batch of whole groups; a larger group is one alone. Lower it where memory is
    short."""
    attention: Literal["auto", "sdpa", "sparse", "flash", "flex"] = "auto"
    """How the tokens of a pack attend. sdpa: under a dense mask. sparse: in blocks (CPU). flash: FlashAttention by
    torch's own `varlen_attn` (GPU, bfloat16). flex: flex-attention (GPU). auto: the fastest of them that works here."""
    logits_mb: Annotated[float, Field(gt=0, le=1e6)] = 512.0
    """Largest float32 block of logits in MB. More tokens are scored block by block, once forward and once backward.
    Lower it where memory is short."""
    max_logprob_gap: Free[Annotated[GapLimit, Field(ge=LEAST_GAP)] | None] = None
    """Stop when engine and learner give any sampled token log-probs that are further apart. null is 1e-3 in float32 and
    5 in bfloat16, where it has a long tail; a temperature below 1 divides that. inf only reports the gap."""
    mean_logprob_gap: Free[GapLimit | None] = None
    """The same limit for the mean over the tokens that one engine sampled in a step, which shows stale weights. null is
    1e-3 in float32 and 0.2 in bfloat16, and inf where `max_logprob_gap` is."""
    max_skipped_steps: Free[NonNegative] = 3
    """Steps in a row that may be left out because loss or gradient is no finite number; one more stops the run."""
    probe_gap: Free[Annotated[float, Field(gt=0)] | None] = None
    """The same limit for a probe of a few tokens, which always stops: after the first two pushes, when an engine joins,
    and every 50 pushes under `rollout.max_lag`. null is 1e-3 in float32 and 0.75 in bfloat16; a temperature below 1
    divides that."""
    cpus_per_rank: Free[Amount] = 1.0
    """CPUs that one rank reserves in Ray; fractions share a core."""
    labels: Free[Preferences] = []
    """Labels of the Ray nodes that ranks go to, as in `role=learner` or {role: learner}; empty takes any node. A list
    is tried in order."""
    gpus_per_rank: Free[Amount] = 1.0
    """GPUs that one rank reserves in Ray: 1, a fraction to share a GPU, or 0 on a CPU."""
    start_timeout_s: Free[Seconds] = 900.0
    """Seconds that all ranks may take to start. Raise it for a large model on a slow disk."""
    step_timeout_s: Free[Seconds] = 1800.0
    """Seconds that an optimizer step, or any other call of the ranks, may take. A rank that has not answered by then
    counts as lost."""
    heartbeat_s: Free[Annotated[float, Field(ge=3, le=LONGEST_WAIT_S)]] = 60.0
    """Seconds without a sign of life after which a rank counts as lost, as `cluster.heartbeat_s` is for the driver."""
    max_restarts: Free[NonNegative] = 3
    """Losses of a rank in a row, without a new step in between, after which all ranks are built anew. Engines stay up
    meanwhile. One more loss ends the run, 0 ends it at the first."""
    keep_every: Free[NonNegative] = 1
    """Steps between copies of the learner's state in host memory, from which lost ranks go on. A copy takes what a
    checkpoint does, for a moment twice. Raise it where that is large, 0 goes back to the last checkpoint."""


class ExactConfig(Section):
    """How `method: exact` learns from all candidates of a row."""

    advantage: Literal["raw", "arcsine", "log"] = "arcsine"
    """What is climbed, with p the probability of the right answers. raw: p, the expected reward. arcsine: what GRPO
    climbs with endless samples. log: log p, the likelihood. The later two learn faster where p is small."""
    sampled_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a step's prompts that engines sample and GRPO learns from, which keeps free answers in line."""


class WeightsConfig(Section):
    """How new weights reach the engines."""

    transport: Literal["object_store", "nccl"] = "object_store"
    """Ray's object store works anywhere; nccl needs whole GPUs on both sides."""
    bucket_mb: Annotated[int, Field(ge=1, le=65536)] = 256
    """Most MB of weights that travel as one object or one broadcast; a larger tensor is one alone."""
    timeout_s: Seconds = 600.0
    """Seconds that the engines may take to load a version of the weights."""


class EvaluationConfig(Section):
    """Greedy decoding of the held-out rows: before the first step, every `every` steps, and after the last."""

    every: NonNegative = 50
    """Steps between evaluations; 0 evaluates only before and after."""
    stop_after: Positive | None = None
    """End the run once so many evaluations in a row brought no better `checkpoint.best_by`; null takes every step. The
    learning rate falls as if the run went on. A resumed run ends at once, unless this is raised."""
    stop_delta: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """By how much that measure must rise to count as better for `stop_after`. Raise it where few rows are evaluated."""
    limit: Positive | None = None
    """Evaluate only so many rows of each set, the first ones; null evaluates all."""
    closed_set: bool | None = None
    """Also choose the candidate with the highest log-prob, by the learner. null: in no-think mode, for sets in which
    every question offers a list. true refuses a set in which one does not."""
    sets: dict[str, str] = {}
    """Further sets, evaluated at the same times, as in {cars: some/folder@test, new: "@new_test"}: PATH[@SPLIT], where
    no path means a split of `data.path`. With `base` and `new` among them their harmonic mean H is reported too."""
    samples: Answers = 0
    """Answers sampled a row, as in training, beside the greedy one: for pass@k and majority@k."""
    pass_at_k: list[Positive] = []
    """The k of pass@k and majority@k; by default the powers of two up to `samples`."""


class CheckpointConfig(Section):
    """What is kept on disk to resume from and to use."""

    every: NonNegative = 50
    """Steps between checkpoints; 0 keeps none."""
    keep: Positive = 2
    """Newest checkpoints that are kept, beside the best by `best_by`."""
    best_by: str = "accuracy"
    """Measure by which a checkpoint is the best. Of the held-out rows: accuracy, lenient, closed_set, macro_f1. Of
    another set: `SET/accuracy`. Of base and new: H."""
    grace_s: Seconds = 20.0
    """Seconds after SIGTERM in which a step that is learning may end and a checkpoint be written. Closing takes up to
    ten more. Set it below the time after which the scheduler kills."""
    export: bool | Literal["merged", "adapter"] = True
    """Write the final weights in Hugging Face layout. true and merged: adapters merged into them. adapter: the adapter
    alone, in PEFT's layout. false: nothing."""


class TrackingConfig(Section):
    """What is written about the run, beside metrics.jsonl and TensorBoard."""

    services: list[Literal["wandb", "mlflow", "trackio"]] = []
    """Trackers that get every number and sample too. Each takes its server and its key from the environment, as in
    WANDB_API_KEY or MLFLOW_TRACKING_URI. One that fails is an event, and ends nothing."""
    project: str = "rollcall"
    """Project of the run there, which MLflow calls an experiment."""
    samples_every: NonNegative = 10
    """Steps between kept samples (prompt, image, completions, rewards)."""
    samples: Positive = 2
    """Groups that are kept each time, beside those of highest and lowest reward."""
    profile_steps: tuple[NonNegative, NonNegative] | None = None
    """First step, and the one after the last, of which every process writes a torch trace into the run's `profile/`.
    `--profile steps=3:5` sets it."""


class ClusterConfig(Section):
    """Where the run runs."""

    address: str | None = None
    """Ray address. null: RAY_ADDRESS if set (as under `ray job submit`), else a cluster of its own on this machine."""
    device: Literal["cpu", "cuda"] = "cuda"
    """Device of every engine and every rank."""
    threads: Processes = 1
    """OMP threads of each process. Processes whose threads share cores run 5 to 15 times slower."""
    wait_for_resources_s: Annotated[float, Field(ge=0, le=LONGEST_WAIT_S)] = 0.0
    """Seconds to wait for nodes to join before the run says what is missing; for autoscaling clusters."""

    heartbeat_s: Annotated[float, Field(ge=3, le=LONGEST_WAIT_S)] = 20.0
    """Seconds without a sign of life after which a driver counts as frozen: its parent process ends all of the run.
    Raise it where the host of the driver swaps, or stands still at times."""
    hang_s: Seconds = 600.0
    """Seconds without any progress after which a line says who waits for whom. `stacks.txt` in the run folder then has
    the stacks of all processes. Raise it where one pack, one checkpoint or one reward takes longer."""

    def resolve_address(self) -> str:
        """Return the Ray address to join; LOCAL_CLUSTER means a cluster of its own on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or LOCAL_CLUSTER
