"""The model families, and all that is particular to each, a line a family. Everything else is the same for all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The facts of a family that its configuration, processor and forward pass do not say themselves."""

    marks: tuple[str, ...] = ()  # tokens around and within a picture, besides the image token: no answer has them
    pixel_limits: tuple[int, int] | None = None  # defaults of model.min_pixels and max_pixels; None: it has neither
    tile_axis: int = 0  # axis of its image inputs along which those of several prompts are joined
    fewest_image_tokens: int = 1  # a smaller picture breaks its forward
    needs_sections: bool = False  # its rotary positions are of time, height and width: `mrope_section`
    square: bool = False  # transformers and vLLM read any other picture differently
    # The likeliest reason when engine and learner disagree, for the message of the parity probe.
    suspect: str = "vLLM and transformers process this model's pictures, or name its weights, differently"
    shared_prefix: bool = True  # exact with a block mask: the tests show it for every family below


_QWEN = Family(
    marks=("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    pixel_limits=(3136, 401408),  # CLS-RL's recipe
    needs_sections=True,
)
_IDEFICS = Family(
    marks=(
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    ),
    tile_axis=1,  # (1, tiles, ...): the first axis counts prompts
)
FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "internvl": Family(marks=("<img>", "</img>", "<video>")),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "llava_onevision": Family(),
    "mistral3": Family(marks=("[IMG_BREAK]", "[IMG_END]"), fewest_image_tokens=2),
    "gemma3": Family(
        marks=("<start_of_image>", "<end_of_image>"),
        suspect="image tokens see each other in vLLM on a GPU, where the learner, as vLLM on a CPU, is causal",
    ),
    "aria": Family(square=True),
}
OTHER = Family(  # a family that is not tested: no shared prefix, and the parity probe decides
    shared_prefix=False,
    suspect="nobody has tried this family: its attention may not be causal over a picture, or its pictures be read "
    "differently",
)


def family_of(config: Any) -> Family:
    """Return the facts of a model's family by its transformers configuration; OTHER for one that is not listed."""
    return FAMILIES.get(config.model_type, OTHER)


def engine_name(name: str, config: Any) -> str:
    """Return the name that vLLM and the checkpoints on the hub give to a parameter of transformers.

    transformers 5 left `vision_model` out of the names of SigLIP and CLIP towers, and vLLM did not:
    `model.vision_tower.encoder.x` becomes `model.vision_tower.vision_model.encoder.x`.
    """
    if getattr(config.vision_config, "model_type", None) not in ("siglip_vision_model", "clip_vision_model"):
        return name
    return re.sub(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)", r"\1vision_model.", name)
