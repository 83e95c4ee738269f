"""Random Qwen2-VL and Qwen2.5-VL of some 0.1 M parameters, and groups of ragged prompts, pictures and completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from common.types import Completion, Example, Group, ImageFeatures, Prompt, ScoredGroup, StepResult

Family = Literal["qwen2_vl", "qwen2_5_vl"]
VOCABULARY, IMAGE, VIDEO, VISION_START, VISION_END = 96, 90, 91, 92, 93
BANNED = (IMAGE, VIDEO, VISION_START, VISION_END)
MERGE, PATCH = 2, 4


def model(family: Family = "qwen2_vl", *, tied: bool = True) -> Any:
    """A fresh model, always the same one; biases are random too, so that nothing hides behind a zero."""
    import transformers

    text: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        "tie_word_embeddings": tied,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
    }
    special: dict[str, Any] = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(0)
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        config: Any = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **special)
        kind: Any = transformers.Qwen2VLForConditionalGeneration
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special)
        kind = transformers.Qwen2_5_VLForConditionalGeneration
    built = kind(config)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            spread = 0.1 if name.endswith("bias") or parameter.ndim == 1 else 0.15
            parameter.add_(torch.randn_like(parameter) * spread)
    return built.train()


def save(folder: Path, family: Family = "qwen2_vl", *, tied: bool = True) -> Path:
    model(family, tied=tied).save_pretrained(folder)
    return folder


def group(
    seed: int,
    *,
    text: int,
    pictures: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    rewards: Sequence[float] | None = None,
) -> ScoredGroup:
    """One group: `text` tokens around `pictures` of (rows, columns) merged tokens, completions of `lengths` tokens."""
    draw = np.random.default_rng(seed)
    grids = tuple((1, rows * MERGE, columns * MERGE) for rows, columns in pictures)
    ids: list[int] = draw.integers(0, IMAGE, text // 2).tolist()
    for rows, columns in pictures:
        ids += [VISION_START, *[IMAGE] * (rows * columns), VISION_END]
    ids += draw.integers(0, IMAGE, text - text // 2).tolist()
    patches = sum(t * h * w for t, h, w in grids)
    images = None
    if grids:
        pixels = draw.normal(size=(patches, 3 * 2 * PATCH**2)).astype(np.float32)
        images = ImageFeatures(digest=f"{seed}", values={"pixel_values": pixels, "image_grid_thw": np.array(grids)})
    example = Example(id=f"test/{seed}", problem="?", image=None, label="a", columns={})
    prompt = Prompt(example=example, text_ids=tuple(ids), token_ids=tuple(ids), images=images)
    completions = tuple(
        Completion(
            token_ids=tuple(draw.integers(0, IMAGE, length).tolist()),
            logprobs=tuple((-4.5 + draw.normal(size=length)).tolist()),
            text="",
            finish_reason="stop",
        )
        for length in lengths
    )
    scores = tuple(rewards) if rewards is not None else tuple(draw.normal(size=len(lengths)).tolist())
    return ScoredGroup(
        prompt=prompt,
        group=Group(
            prompt_id=prompt.id,
            completions=completions,
            seed=seed,
            origin="sampled",
            engine_id="test",
            weights_version=0,
        ),
        rewards_by_name={"test": scores},
        rewards=scores,
    )


def ragged() -> list[ScoredGroup]:
    """Prompts of 5 to 22 tokens, pictures of 1 to 15 merged tokens (none, one, two), completions of 1 to 7 tokens."""
    return [
        group(1, text=9, pictures=[(2, 2)], lengths=[1, 4, 7, 2]),
        group(2, text=5, pictures=[(3, 5)], lengths=[3, 1, 1]),
        group(3, text=12, pictures=[], lengths=[2, 2, 6]),
        group(4, text=6, pictures=[(1, 1), (4, 2)], lengths=[5, 1]),
        group(5, text=4, pictures=[(4, 2)], lengths=[2, 3, 4, 1, 6]),
    ]


def step_result(**changes: Any) -> StepResult:
    """What a step measured: nothing, but for `changes`."""
    names = (
        "loss",
        "kl",
        "entropy",
        "grad_norm",
        "lr",
        "clip_share",
        "logprob_gap_mean",
        "logprob_gap_max",
        "engine_kl",
    )
    figures: dict[str, Any] = dict.fromkeys((*names, "corrected_share"), 0.0)
    figures |= {
        "updates": 1,
        "skipped": 0,
        "effective_share": 1.0,
        "gaps": {},
        "by_lag": {},
        "tokens": 9,
        "probabilities": {},
    }
    return StepResult(**figures | changes)
