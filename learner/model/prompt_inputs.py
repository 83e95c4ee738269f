"""Make the tensors a model reads of prompts: ids, rope positions, pictures; the same way for every family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.config.schema import DataConfig, ModelConfig
from common.errors import DataError
from common.models.families import family_of
from common.models.processor import load_processor
from common.models.prompts import PromptEncoder
from common.types import Example, Prompt

Arrays = Mapping[str, npt.NDArray[Any]]


def read_prompt(prompt: Prompt, model: Any, known: dict[bytes, Tensor]) -> tuple[Tensor, Tensor]:
    """Return (T,) ids and (axes, T) rope positions: 3 axes where the model has time, height and width, else 1.

    Raises DataError if image tokens and pictures disagree.

    Args:
        known: positions made before, which are slow to make, by the shape of the prompt; filled here.
    """
    ids = torch.tensor(prompt.token_ids)
    is_image = ids == model.config.image_token_id
    if not hasattr(model.model, "get_rope_index"):
        if bool(is_image.any()) != bool(prompt.features):
            raise _disagreement(prompt, f"{int(is_image.sum())} image tokens, inputs {sorted(prompt.features)}")
        return ids, torch.arange(len(ids))[None]
    features, merged = prompt.features, model.config.vision_config.spatial_merge_size**2
    grids = torch.from_numpy(features["image_grid_thw"]) if features else torch.empty(0, 3, dtype=torch.long)
    patches, held = int(grids.prod(1).sum()), _count_patches(features, merged)
    if int(is_image.sum()) * merged != patches or held != patches:
        raise _disagreement(prompt, f"{int(is_image.sum())} image tokens, grid {grids.tolist()}, {held} patches")
    shape = is_image.numpy().tobytes() + grids.numpy().tobytes()
    if shape not in known:
        positions, _ = model.model.get_rope_index(
            ids[None], mm_token_type_ids=is_image.int()[None], image_grid_thw=grids if len(grids) else None
        )
        known[shape] = positions[:, 0]
    return ids, known[shape]


def _count_patches(features: Arrays, merged: int) -> int:
    if "image_embeds" in features:
        return len(features["image_embeds"]) * merged
    return len(features["pixel_values"]) if features else 0


def _disagreement(prompt: Prompt, got: str) -> DataError:
    return DataError(
        f"prompt {prompt.id}: its tokens, image grid and pixels disagree",
        got=got,
        remedy="make ids and pixels with the same processor settings, and never cut a prompt",
    )


def join_prompts(prompts: Sequence[Prompt], model: Any) -> dict[str, Tensor]:
    """Join every image input that the model's forward names, of all prompts in order; empty without a picture.

    They join along the family's axis. Where pictures differ along another (tiles of LLaVA-OneVision, sides of
    Mistral 3), smaller ones are padded with zeros, which the model cuts off again.
    """
    held = [prompt.features for prompt in prompts if prompt.features]
    axis, taken = family_of(model.config).tile_axis, list_forward_inputs(model) | {"image_embeds"}
    names = [name for name in (held[0] if held else ()) if name in taken]
    return {name: torch.from_numpy(_pad_and_join([features[name] for features in held], axis)) for name in names}


def list_forward_inputs(model: Any) -> frozenset[str]:
    """Return the keywords of the forward of `model`."""
    return _keywords(type(model.model).forward)


@cache
def _keywords(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _pad_and_join(arrays: Sequence[npt.NDArray[Any]], axis: int) -> npt.NDArray[Any]:
    largest = np.max([array.shape for array in arrays], axis=0)
    padded = []
    for array in arrays:
        missing = [(0, 0) if at == axis else (0, size - own) for at, (size, own) in _sizes(largest, array)]
        padded.append(np.pad(array, missing) if any(after for _, after in missing) else array)
    return np.concatenate(padded, axis)


def _sizes(largest: npt.NDArray[Any], array: npt.NDArray[Any]) -> enumerate[tuple[int, int]]:
    return enumerate(zip(largest.tolist(), array.shape, strict=True))


def make_blank_picture(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (T,) ids and image inputs of a small blank picture, for a pack without any."""
    if not hasattr(model.model, "get_rope_index"):
        prompt = _blank_prompt(model.name_or_path)
        return torch.tensor(prompt.token_ids), join_prompts([prompt], model)
    vision = model.config.vision_config  # one merged token, smaller than the processor makes any
    side = vision.spatial_merge_size
    pixels = torch.zeros(side * side, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
    images = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}
    return torch.tensor([model.config.image_token_id]), images


@cache
def _blank_prompt(path: str) -> Prompt:
    encoder = PromptEncoder(load_processor(ModelConfig(path=path)), DataConfig(max_prompt_tokens=1 << 20))
    image = np.zeros((56, 56, 3), dtype=np.uint8)
    return encoder.encode(Example(id="blank", problem="?", image=image, label="?", columns={}))
