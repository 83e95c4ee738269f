"""The arithmetic a group needs, and how fast this machine does arithmetic: together the bound on any learner.

One multiply-add is two FLOPs. Counted are matrix products and attention over the pairs a causal mask leaves; norms,
activations and softmax are not, so the bound is a little too kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.benchmarks.report import best

BACKWARD = 2  # times the forward: a product's gradient by each of its factors


def group_forward(
    config: Any, *, prompt: int, grids: Sequence[tuple[int, int, int]], completions: Sequence[int]
) -> int:
    """Of one group with its image and prompt once: `prompt` tokens in all, a completion's last token never read."""
    text = config.get_text_config()
    fed = [length - 1 for length in completions]
    pairs = _causal(prompt) + sum(length * prompt + _causal(length) for length in fed)
    return (
        vision_forward(config.vision_config, grids)
        + text_forward(text, tokens=prompt + sum(fed), pairs=pairs, unread=prompt - 1)
        + head_forward(text, tokens=sum(completions))
    )


def naive_forward(
    config: Any, *, prompt: int, grids: Sequence[tuple[int, int, int]], completions: Sequence[int]
) -> int:
    """Of the same group as rows of their own."""
    return sum(group_forward(config, prompt=prompt, grids=grids, completions=[length]) for length in completions)


def text_forward(text: Any, *, tokens: int, pairs: int, unread: int = 0) -> int:
    """All layers over `tokens`, attending over `pairs` of query and key. Of the last layer the first `unread` tokens
    need no more than keys and values."""
    width, inner, heads = text.hidden_size, text.intermediate_size, text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // heads
    weights = 2 * width * head * (heads + text.num_key_value_heads) + 3 * width * inner
    whole = text.num_hidden_layers * (2 * tokens * weights + 4 * pairs * heads * head)
    beyond = 2 * unread * (2 * width * head * heads + 3 * width * inner) + 4 * _causal(unread) * heads * head
    return int(whole - beyond)


def head_forward(text: Any, *, tokens: int) -> int:
    """Logits of `tokens`."""
    return int(2 * tokens * text.hidden_size * text.vocab_size)


def vision_forward(vision: Any, grids: Sequence[tuple[int, int, int]]) -> int:
    """A Qwen2-VL tower over images of (time, height, width) patches each, and its merger."""
    patches = [time * height * width for time, height, width in grids]
    width, out = vision.embed_dim, vision.hidden_size
    block = 4 * width * width + 2 * width * int(width * vision.mlp_ratio)
    embed = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * width
    merged = width * vision.spatial_merge_size**2
    tokens = sum(patches)
    attention = 4 * width * sum(count * count for count in patches)
    merger = 2 * tokens // vision.spatial_merge_size**2 * (merged * merged + merged * out)
    return int(2 * tokens * (vision.depth * block + embed) + vision.depth * attention + merger)


def step_needs(forward: int, *, reference: bool = True, rollout: bool = True) -> int:
    """A whole step of what one forward costs: sampled once, read by the reference once, learned from once."""
    return forward * (1 + BACKWARD + reference + rollout)


def matmul_rate(config: Any, dtype: Any, *, device: str = "cpu", tokens: int = 640, repeats: int = 7) -> float:
    """FLOP/s of the model's own largest linear layers, text and vision, at a pack's number of tokens."""
    import torch

    text, vision = config.get_text_config(), config.vision_config
    shapes = [
        (tokens, text.hidden_size, text.intermediate_size),
        (tokens, text.intermediate_size, text.hidden_size),
        (2 * tokens, vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio)),
    ]
    needed, took = 0, 0.0
    with torch.no_grad():
        for rows, inner, columns in shapes:
            data = torch.randn(rows, inner, dtype=dtype, device=device)
            weight = torch.randn(columns, inner, dtype=dtype, device=device)
            took += best(lambda data=data, weight=weight: _product(data, weight), repeats=repeats) / 4  # type: ignore[misc]
            needed += 2 * rows * inner * columns
    return needed / took


def _product(data: Any, weight: Any) -> None:
    import torch

    for _ in range(4):
        torch.nn.functional.linear(data, weight)
    if data.is_cuda:
        torch.cuda.synchronize()


def _causal(length: int) -> int:
    return length * (length + 1) // 2
