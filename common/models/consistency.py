"""Hold the parts of a model's configuration against each other: what the learner reads and what an engine reads."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from common.errors import ModelError
from common.models.families import FAMILIES, family_of

# Settings of a Qwen's image processor, and the vision tower's names for them.
_PATCHES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}


def check_architecture(path: str, config: Any) -> None:
    """Refuse a configuration whose `architectures` are not the class that transformers makes of its `model_type`.

    The learner goes by `model_type`, an engine by `architectures`. Outside FAMILIES any name will do.

    Raises ModelError naming both.
    """
    named = config.architectures or []
    wanted = _find_class(config.model_type)
    if wanted in named or (named and config.model_type not in FAMILIES) or getattr(config, "auto_map", None):
        return
    raise ModelError(
        f"config.json of {path} does not say which class an engine makes of it",
        got=f"architectures {named}, and model_type {config.model_type}, which is {wanted}",
        remedy=f'set "architectures": ["{wanted}"], or use the config.json that came with the weights',
    )


def _find_class(model_type: str) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    found: Any = KNOWN.get(model_type)
    return found if isinstance(found, str | None) else found[0]


def check_rope(path: str, config: Any) -> None:
    """Refuse sections of rotary positions (`mrope_section`) that do not share out half of a head, or are missing.

    A head of 128 numbers has 64 angles: [16, 24, 24] for time, height and width.

    Raises ModelError saying what they must add up to.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    sections = rope.get("mrope_section")
    if sections is None and not family_of(config).needs_sections:
        return
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    angles = int(size * rope.get("partial_rotary_factor", 1.0)) // 2
    numbers = sections if isinstance(sections, list | tuple) and all(type(one) is int for one in sections) else []
    if sum(numbers) == angles and (len(numbers) == 3 or not family_of(config).needs_sections) and min(numbers) >= 0:
        return
    raise ModelError(
        f"the rotary positions in config.json of {path} do not fit its heads",
        got=f"mrope_section {sections}, where three numbers must add up to {angles}",
        remedy="use the config.json that came with the weights",
    )


def check_image_processor(path: str, config: Any, images: Any) -> None:
    """Refuse settings of an image processor that its model cannot work with.

    Raises ModelError naming them all.
    """
    if faults := list(_find_faults(config, images)):
        raise ModelError(
            f"the image processor of {path} does not fit its model",
            got="; ".join(faults),
            remedy="use the preprocessor_config.json or processor_config.json that came with the weights",
        )


def _find_faults(config: Any, images: Any) -> Iterator[str]:
    vision = getattr(config, "vision_config", None)
    if family_of(config).pixel_limits is not None:  # others have patches of other units, as Pixtral's
        for own, name in _PATCHES.items():
            given, wanted = getattr(images, own, None), getattr(vision, name, None)
            if given is not None and wanted is not None and given != wanted:
                yield f"{own} {given!r}, where vision_config has {name} {wanted!r}"

    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    for name in ("image_mean", "image_std", "rescale_factor"):
        given = getattr(images, name, None)
        given = list(given) if isinstance(given, tuple) else given
        numbers = given if isinstance(given, list) else [] if given is None else [given]
        if not all(_is_number(one) and (one or name == "image_mean") for one in numbers):
            yield f"{name} {given!r}"
        elif isinstance(given, list) and len(given) != channels:
            yield f"{name} {given!r}, where a picture has {channels} channels"


def _is_number(one: object) -> bool:
    return isinstance(one, int | float) and not isinstance(one, bool) and isfinite(one)
