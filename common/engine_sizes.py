"""Sizes of an engine: what it has on a CPU unless the configuration gives others, and what its KV cache must hold."""

from __future__ import annotations

import math
from typing import Any

KV_CACHE_BYTES = 64 << 20
BATCHED_TOKENS = 4096  # of one forward; more where a single prompt with its completion is longer
LONGEST_FOR_16 = 512  # tokens of prompt and completion up to which blocks of 16 pay
GPU_BLOCK = 16  # tokens; some backends take larger ones


def choose_cpu_block(dtype: str, longest: int) -> int:
    """Return the tokens of a block of the KV cache on a CPU: only full blocks of a prompt are shared by its G answers.

    vLLM's default of 128 is longer than many prompts. Blocks of 16 share most of a short prompt. Measured against 32,
    they are as fast with heads of 64 at 272 tokens. They are a quarter slower at 1024 tokens, and with heads of 128 at
    272: `LONGEST_FOR_16` is a compromise. The kernels for AMX take no blocks of 16.

    Args:
        dtype: of the model, "float32" or "bfloat16".
        longest: tokens of the longest prompt with its completion.
    """
    import torch

    by_amx = dtype == "bfloat16" and torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    return 32 if by_amx or longest > LONGEST_FOR_16 else 16


def count_kv_bytes(text: Any, itemsize: int) -> int:
    """Return the bytes that one token takes in the KV cache of one layer, by the configuration of a language model."""
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(2 * heads * width * itemsize)


def count_least_cache(text: Any, *, longest: int, block: int, itemsize: int) -> int:
    """Return the least bytes of a KV cache in which vLLM takes one sequence of the longest length.

    Example: 2 layers of 2 heads of 32 in float32 take 1 KiB a token. 300 tokens fill 19 blocks of 16; with the one
    that vLLM never uses these are 320 KiB. Layers with a window are counted with the window alone, which is less than
    vLLM asks for. Others than attention are not counted.
    """
    limit = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    window = min(limit or longest, longest)
    kind = "sliding_attention" if limit else "full_attention"
    kinds = getattr(text, "layer_types", None) or [kind] * text.num_hidden_layers
    blocks = kinds.count("full_attention") * (math.ceil(longest / block) + 1)
    blocks += kinds.count("sliding_attention") * math.ceil(window / block)
    return blocks * block * count_kv_bytes(text, itemsize)
