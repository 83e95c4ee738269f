"""What a KV cache must hold, by a table made by hand; `tests/rollout/test_vllm_contract.py` asks vLLM itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from common.engine_sizes import choose_cpu_block, count_least_cache

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 256, "num_hidden_layers": 4}  # of 32
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("more", "blocks"),
    [
        ({}, 4 * (19 + 1)),
        ({"sliding_window": None}, 4 * (19 + 1)),
        ({"sliding_window": 64}, 4 * 4),
        ({"sliding_window": 64, "use_sliding_window": False}, 4 * (19 + 1)),
        ({"sliding_window": 4096}, 4 * 19),
        ({"sliding_window": 64, "layer_types": [SLIDING, SLIDING, SLIDING, FULL]}, 3 * 4 + 20),
        ({"layer_types": ["linear_attention", FULL, "linear_attention", FULL]}, 2 * 20),
    ],
)
def test_the_least_cache_of_300_tokens(more: dict[str, Any], blocks: int) -> None:
    """In blocks of 16: 19 and the one that vLLM never uses. A token takes keys and values of 2 x 32 float32."""
    text = SimpleNamespace(**HEADS, **more)
    assert count_least_cache(text, longest=300, block=16, itemsize=4) == blocks * 16 * 2 * 2 * 32 * 4


def test_heads_may_have_a_width_of_their_own() -> None:
    wide = SimpleNamespace(**HEADS, head_dim=128)
    assert count_least_cache(wide, longest=16, block=16, itemsize=2) == 4 * 2 * 16 * 2 * 2 * 128 * 2


def test_blocks_on_a_cpu_are_short_for_short_prompts() -> None:
    assert [choose_cpu_block("float32", longest) for longest in (512, 513)] == [16, 32]
