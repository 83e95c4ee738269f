"""Lengths and sizes that a model and its engines have bounds for: positions, the KV cache, the squares of pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from common.config.schema import EMBEDDED_MODEL, Config, ModelConfig
from common.engine_sizes import GPU_BLOCK, KV_CACHE_BYTES, choose_cpu_block, count_least_cache
from common.errors import ConfigError
from common.models.families import FAMILIES, Family, family_of
from common.models.processor import image_size, load_model_config, load_processor
from common.models.prompts import PromptEncoder

SMALL = 1024  # pixels a side of a square that may be tried out on rows before the model is read
LONGER_ALLOWED = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"  # vLLM's own way out
ITEMSIZE = {"float32": 4, "bfloat16": 2}
# Keys of a configuration that bound the length of a sequence, as vLLM knows them; and types of RoPE whose factor is in
# `max_position_embeddings` already.
_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def check_picture_size(config: Config, *, say: Callable[[str], None]) -> None:
    """Refuse a large `data.image_size` whose squares have more tokens than a prompt, before any picture is resized.

    Says so where the processor scales them down again. Raises ConfigError, or DataError for a size the family lacks.
    """
    side, most = config.data.image_size, config.data.max_prompt_tokens
    if side is None or side <= SMALL:
        return
    family, processor = _read_processor(config.model)
    tokens = PromptEncoder(processor, config.data, family=family).count_square(side)
    if tokens > most:
        raise ConfigError(
            "a picture alone has more tokens than a prompt may have",
            got=f"data.image_size = {side} takes {tokens} tokens, and data.max_prompt_tokens = {most}",
            remedy="lower data.image_size, or raise data.max_prompt_tokens",
        )
    limits = image_size(config.model, family)
    if limits and side**2 > limits["longest_edge"]:
        say(
            f"warning: data.image_size = {side} takes time and memory for nothing: the processor scales such pictures "
            f"down again to model.max_pixels = {limits['longest_edge']}, {math.isqrt(limits['longest_edge'])} a side"
        )


def _read_processor(model: ModelConfig) -> tuple[Family, Any]:
    """Return family and processor of a model, of `embedded:tiny` one with hardly a word. Raises ModelError."""
    if model.path != EMBEDDED_MODEL:
        return family_of(load_model_config(model)), load_processor(model)
    from learner.embedded.tokenizer import build_processor

    family, processor = FAMILIES["qwen2_vl"], build_processor([], size_limit=300)
    processor.image_processor.size = image_size(model, family)
    return family, processor


def check_lengths_fit(config: Config, model_config: Any) -> None:
    """Refuse prompts and completions that are longer than the model's positions or an engine's KV cache.

    Raises ConfigError naming the keys and the largest, or least, value that fits.
    """
    text = model_config.get_text_config()
    _check_positions(config, text)
    _check_kv_cache(config, text)


def _check_positions(config: Config, text: Any) -> None:
    """Refuse lengths beyond the model's positions, as vLLM does. Raises ConfigError."""
    prompt, completion = config.data.max_prompt_tokens, config.rollout.max_completion_tokens
    longest, (most, key) = prompt + completion, find_longest(text)
    if longest <= most or os.environ.get(LONGER_ALLOWED, "0").lower() in ("1", "true"):
        return
    fits = [
        f"set {name} to at most {most - other}"
        for name, other in (("rollout.max_completion_tokens", prompt), ("data.max_prompt_tokens", completion))
        if most > other
    ]
    raise ConfigError(
        f"prompts with their completions are longer than the {most} positions of the model",
        got=f"data.max_prompt_tokens = {prompt} + rollout.max_completion_tokens = {completion} = {longest}, "
        f"and {key} = {getattr(text, key)} in config.json",
        remedy=", or ".join(fits) or f"lower both: their sum may be {most}",
    )


def find_longest(text: Any) -> tuple[float, str]:
    """Return the most tokens of a sequence by the configuration of a language model, and the key that says so.

    Counts as vLLM does; infinity where nothing bounds them.
    """
    bounds = {key: getattr(text, key, None) for key in _LENGTH_KEYS}
    given = {key: bound for key, bound in bounds.items() if bound is not None}
    own = given.get("model_max_length")
    if not given:
        return math.inf, ""
    key = min(given, key=lambda name: given[name])
    most = own or given[key]
    factor = 1.0
    for rope in _list_ropes(text):
        if rope.get("rope_type") not in _SCALED_ALREADY:
            factor = rope.get("factor") or factor
    if "gemma3" not in text.model_type:  # theirs is scaled already
        most *= factor
    return max(int(most), own or 0), "model_max_length" if own else key


def _list_ropes(text: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of RoPE: one for all layers, or one for each type of layer."""
    ropes = getattr(text, "rope_parameters", None) or {}
    nested = [rope for rope in ropes.values() if isinstance(rope, Mapping)]
    yield from nested or [ropes]


def _check_kv_cache(config: Config, text: Any) -> None:
    """Refuse a KV cache in which not one sequence fits. Raises ConfigError; what a GPU leaves is not known here."""
    rollout, cpu = config.rollout, config.cluster.device == "cpu"
    if rollout.kv_cache_mb is None and not cpu:
        return
    longest = config.data.max_prompt_tokens + rollout.max_completion_tokens
    block = choose_cpu_block(config.model.dtype, longest) if cpu else GPU_BLOCK
    try:
        least = count_least_cache(text, longest=longest, block=block, itemsize=ITEMSIZE[config.model.dtype])
    except (AttributeError, TypeError):  # a language model of another build
        return
    given = KV_CACHE_BYTES if rollout.kv_cache_mb is None else rollout.kv_cache_mb << 20
    if least > given and not getattr(text, "kv_lora_rank", None):  # latent attention keeps less
        raise ConfigError(
            "the KV cache of an engine does not hold one prompt with its completion",
            got=f"rollout.kv_cache_mb = {rollout.kv_cache_mb or f'null, which is {KV_CACHE_BYTES >> 20} on a CPU'}, "
            f"and {longest} tokens (data.max_prompt_tokens + rollout.max_completion_tokens) take {_count_mb(least)} MB",
            remedy=f"set rollout.kv_cache_mb to {_count_mb(least)} or more, or lower one of those two keys",
        )


def _count_mb(nbytes: int) -> int:
    return math.ceil(nbytes / 2**20)
