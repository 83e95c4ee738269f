"""`--plan`: the memory a run will take, part by part, before anything is loaded.

Weights, gradients and optimizer are arithmetic over what DeepSpeed keeps at each ZeRO stage, as measured. What a
forward and backward holds is traced on a model without memory (`learner.memory.trace`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config.schema import Config, ModelConfig
from common.engine_sizes import BATCHED_TOKENS, KV_CACHE_BYTES, count_kv_bytes
from common.models.families import family_of
from common.models.processor import image_size, load_model_config, load_processor
from common.models.prompts import PromptEncoder
from common.types import Example, ImageFeatures, Prompt, ScoredGroup
from learner.memory.trace import build_weightless_model, make_up_group, trace_learning_peak
from learner.model.vision_features import ENGINE_TAKES_FEATURES
from learner.trainer.microbatches import count_positions
from learner.trainer.zero_config import LARGEST_BUCKET, LIVE_PARAMETERS

RANK_ITSELF = {"cpu": 640 << 20, "cuda": 1 << 30}  # imports and DeepSpeed, measured; CUDA and NCCL, a guess
ENGINE_ITSELF = 850 << 20  # vLLM on a CPU, imports and workspaces
LISTED = 100  # candidates a row that `method: exact` is planned for: no list of CLS-RL is longer
SHORT = 2  # tokens of the shortest completions planned for: a label and the end of turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One line of a plan."""

    name: str
    nbytes: int
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The memory of one process."""

    parts: tuple[Part, ...]  # held all the time
    passing: tuple[Part, ...] = ()  # held one after the other

    @property
    def nbytes(self) -> int:
        """Bytes at the highest moment."""
        return sum(part.nbytes for part in self.parts) + max((part.nbytes for part in self.passing), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers of elements of a model's parameters; a tied head counts once."""

    total: int
    vision: int
    trained: int
    largest: int  # of the trained tensors
    itemsize: int

    @classmethod
    def of(cls, model: Any) -> Counts:
        """Count the parameters of `model`."""
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        return cls(
            total=sum(sizes.values()),
            vision=sum(size for name, size in sizes.items() if "visual" in name or "vision" in name),
            trained=sum(trained),
            largest=max(trained),
            itemsize=model.dtype.itemsize,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The memory that a configuration takes."""

    config: Config
    counts: Counts
    tokens: int  # of the shortest prompt with a picture
    pictures: int  # of these, the tokens of its picture
    pack: str  # the largest pack, in words
    rank: Share
    engine: Share
    host: Share


def plan(config: Config, model: ModelConfig) -> Plan:
    """Plan the memory of a run of `config`.

    Args:
        model: as in the configuration, `embedded:tiny` being made.

    Raises:
        ModelError: the model's configuration or processor cannot be read.
    """
    os.environ.setdefault("DS_ACCELERATOR", config.cluster.device)  # transformers brings DeepSpeed in, aloud
    model_config = load_model_config(model)
    policy = build_weightless_model(model_config, config)
    counts = Counts.of(policy)
    prompt = _make_prompt(config, model, model_config)
    packs = [
        [make_up_group(prompt, **shape)] * number for shape, number in _largest_packs(config, len(prompt.token_ids))
    ]
    try:
        peaks = [trace_learning_peak(policy, pack, config) for pack in packs]
    except (RuntimeError, ValueError):  # what torch and models say where a forward asks for values, and has only shapes
        peaks, largest = [0], "this family's forward cannot be traced: forward and backward are not counted"
    else:
        largest = _describe(packs[peaks.index(max(peaks))])
    return Plan(
        config=config,
        counts=counts,
        tokens=len(prompt.token_ids),
        pictures=prompt.token_ids.count(model_config.image_token_id),
        pack=largest,
        rank=plan_rank(counts, max(peaks), config),
        engine=plan_engine(counts, model_config, config),
        host=plan_host(counts, config),
    )


def _describe(pack: Sequence[ScoredGroup]) -> str:
    """Say the size of a pack in words."""
    tokens = sum(count_positions(group) for group in pack)
    predicted = sum(len(completion.token_ids) for group in pack for completion in group.group.completions)
    return f"{tokens} tokens, {len(pack)} prompt(s), {predicted} tokens predicted"


def plan_rank(counts: Counts, peak: int, config: Config) -> Share:
    """Plan the device memory of one learner rank. `peak`: bytes of forward and backward on the largest pack.

    Measured with DeepSpeed 0.19.8, one and two ranks, float32 and bfloat16, every stage (`tests/benchmarks/plan.py`).
    """
    learner, size, cuda = config.learner, counts.itemsize, config.cluster.device == "cuda"
    stage, ranks = learner.zero_stage, learner.ranks

    # What is held all the time.
    waits, all_wait = learner.offload != "none", learner.offload == "optimizer_and_parameters"  # in the host's memory
    split = [ranks if stage >= least else 1 for least in range(4)]  # of optimizer, gradients and weights: 1, 2, 3
    weights = counts.total * size // split[3]
    gradients = counts.trained * size // split[2]
    bucket = min(LARGEST_BUCKET, counts.total) * size
    reduced = min(LARGEST_BUCKET, counts.trained) * size
    parts = [
        Part(name="weights", nbytes=0 if all_wait else weights, about=config.model.dtype),
        Part(name="gradients", nbytes=gradients),
        Part(name="optimizer", nbytes=0 if waits else _optimizer_bytes(counts, config), about="float32"),
    ]
    if learner.beta and not config.lora.rank:
        parts.append(Part(name="reference", nbytes=weights))
    if learner.reference_ema is not None and size < 4:
        parts.append(Part(name="its average", nbytes=4 * counts.trained // split[3], about="float32"))
    if stage == 3:
        gathered = min(LIVE_PARAMETERS, counts.total) * size if ranks > 1 or all_wait else 0
        parts.append(Part(name="ZeRO-3's buffers", nbytes=bucket + gathered, about="gathered weights, gradient bucket"))
    parts.append(Part(name="the process", nbytes=RANK_ITSELF[config.cluster.device]))

    # What is held one after the other.
    whole_bucket = bucket if stage == 2 and cuda else 0  # on a CPU pages that are not written yet take nothing
    reducing = {0: reduced, 1: reduced, 2: reduced + gradients, 3: 2 * reduced}[stage]
    passing = (
        Part(name="forward, backward", nbytes=peak + whole_bucket, about="of the largest pack"),
        Part(name="or reducing", nbytes=reducing, about="gradients over ranks"),
        Part(name="or updating", nbytes=0 if waits else _update_bytes(counts, config), about="Adam's own"),
        Part(name="or publishing", nbytes=_bucket_bytes(counts, config), about="one bucket"),
    )
    return Share(parts=tuple(parts), passing=passing)


def _optimizer_bytes(counts: Counts, config: Config) -> int:
    """Count the optimizer bytes of one rank: two moments, and float32 masters except in float32 at stage 0."""
    learner = config.learner
    masters = learner.zero_stage > 0 or counts.itemsize < 4
    return (8 + 4 * masters) * counts.trained // (learner.ranks if learner.zero_stage else 1)


def _update_bytes(counts: Counts, config: Config) -> int:
    """Count the bytes that Adam's update takes on one rank, beside the gradients it replaces."""
    learner, cuda = config.learner, config.cluster.device == "cuda"
    own = 4 * counts.trained // (learner.ranks if learner.zero_stage else 1)  # float32, of this rank's share
    largest = 4 * counts.largest if learner.zero_stage == 0 else own
    update = own if cuda else 2 * largest  # Adam's temporaries: on a GPU all tensors at once
    if learner.zero_stage or counts.itemsize < 4:
        update += own  # gradients in float32
    replaced = learner.zero_stage in (1, 2)
    split = learner.ranks if learner.zero_stage == 2 else 1
    return max(0, update - (counts.trained * counts.itemsize // split if replaced else 0))


def plan_host(counts: Counts, config: Config) -> Share:
    """Plan the host memory of a machine that holds all ranks."""
    learner, weights = config.learner, counts.total * counts.itemsize
    parts = [Part(name="object store", nbytes=2 * weights, about="two versions of the weights")]
    if learner.offload != "none":
        parts.append(
            Part(name="optimizers", nbytes=learner.ranks * _optimizer_bytes(counts, config), about="offloaded")
        )
    if learner.offload == "optimizer_and_parameters":
        parts.append(Part(name="parameters", nbytes=weights, about="offloaded"))
    return Share(parts=tuple(parts))


def plan_engine(counts: Counts, model_config: Any, config: Config) -> Share:
    """Plan the device memory of one engine. On a GPU the KV cache is what `gpu_memory_utilization` leaves."""
    text, rollout, cpu = model_config.get_text_config(), config.rollout, config.cluster.device == "cpu"
    a_token = text.num_hidden_layers * count_kv_bytes(text, counts.itemsize)
    longest = config.data.max_prompt_tokens + rollout.max_completion_tokens
    cache = (rollout.kv_cache_mb << 20) if rollout.kv_cache_mb else KV_CACHE_BYTES if cpu else a_token * longest
    batch = max(BATCHED_TOKENS, longest) * (2 * text.intermediate_size + 6 * text.hidden_size) * counts.itemsize
    logits = 3 * 4 * text.vocab_size * rollout.max_sequences
    parts = [
        Part(name="weights", nbytes=counts.total * counts.itemsize, about=config.model.dtype),
        Part(
            name="KV cache", nbytes=cache, about=f"{cache // a_token} tokens" if cpu or rollout.kv_cache_mb else "least"
        ),
        Part(name="activations", nbytes=batch + logits, about="an estimate"),
    ]
    if cpu:
        loading = int(1.3 * counts.total * counts.itemsize)
        parts.append(Part(name="loading weights", nbytes=loading, about="buffers that are kept"))
        parts.append(Part(name="the process", nbytes=ENGINE_ITSELF))
    return Share(parts=tuple(parts))


def _largest_packs(config: Config, least: int) -> Iterator[tuple[dict[str, int], int]]:
    """Yield shapes of groups and how many of each fill a pack: the longest that may come, and the shortest.

    Packs of the shortest hold the most pictures and predict the most tokens. `least`: tokens of the shortest prompt.
    """
    rollout, longest = config.rollout, max(config.data.max_prompt_tokens, least)
    size = {"grpo": config.largest_group, "exact": LISTED, "sft": 1}[config.method]
    for tokens, length in (
        (longest, rollout.max_completion_tokens),
        (least, min(SHORT, rollout.max_completion_tokens)),
    ):
        whole = tokens + size * (length - 1)
        shape = {"tokens": tokens, "completions": size, "length": length}
        yield shape, max(1, min(config.learner.tokens_per_pack // whole, rollout.prompts_per_step))


def _make_prompt(config: Config, model: ModelConfig, model_config: Any) -> Prompt:
    """Return a prompt of a blank picture of the configured size and hardly a word, as the learner would read it."""
    limits = image_size(model, family_of(model_config))
    side = config.data.image_size or math.isqrt(limits["longest_edge"] if limits else 384 * 384)
    encoder = PromptEncoder(
        load_processor(model),
        config.data.model_copy(update={"max_prompt_tokens": 2**31}),
        family=family_of(model_config),
    )
    blank = np.zeros((side, side, 3), np.uint8)
    prompt = encoder.encode(Example(id="plan", problem="?", image=blank, label="", columns={}))
    if not config.towers_frozen or model_config.model_type not in ENGINE_TAKES_FEATURES:
        return prompt
    visual = prompt.token_ids.count(model_config.image_token_id)
    embeds = np.zeros((visual, model_config.get_text_config().hidden_size), np.float32)
    values = {"image_embeds": embeds, "image_grid_thw": prompt.features["image_grid_thw"]}
    return Prompt(
        example=prompt.example,
        text_ids=prompt.text_ids,
        token_ids=prompt.token_ids,
        images=ImageFeatures(digest="plan", values=values),
    )


def _bucket_bytes(counts: Counts, config: Config) -> int:
    return max(min(config.weights.bucket_mb << 20, counts.total * counts.itemsize), counts.largest * counts.itemsize)
