"""A request as vLLM's own processor would leave it: with the learner's very ids and pixels, processed nowhere else."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from common.models.families import family_of
from common.types import GenerationRequest, ImageFeatures
from rollout.weights import view_as_tensor

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.inputs.engine import EngineInput


def make_engine_input(llm: LLM, request: GenerationRequest, features: ImageFeatures | None) -> EngineInput:
    """Return the request as `LLMEngine.add_request` takes it.

    Raises ValueError when ids, grids and pixels disagree (fault 4): vLLM would fail amid a step.
    """
    import torch
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    token_ids = list(request.token_ids)
    config: Any = llm.llm_engine.model_config.hf_config
    if features is None:
        if config.image_token_id in token_ids:
            raise ValueError("the prompt has image tokens and no picture")
        return tokens_input(token_ids)

    # How this family's inputs divide into pictures, and where each picture's tokens stand.
    processor = llm.llm_engine.renderer.get_mm_processor()
    tensors = _make_vllm_inputs(features, config)
    fields = processor._get_mm_fields_config(tensors, {})  # noqa: SLF001
    spans = _find_spans(token_ids, features, config)
    is_image = torch.tensor(token_ids) == config.image_token_id  # a picture's span has marks of rows and tiles too
    return mm_input(
        token_ids,
        MultiModalKwargsItems.from_hf_inputs(tensors, fields),
        {"image": [f"{features.digest}-{index}" for index in range(len(spans))]},
        {
            "image": [
                PlaceholderRange(offset=start, length=length, is_embed=is_image[start : start + length])
                for start, length in spans
            ]
        },
    )


def _make_vllm_inputs(features: ImageFeatures, config: Any) -> Any:
    """Turn what transformers' processor has made of a picture into what vLLM's processor of the family would make."""
    import torch
    from transformers import BatchFeature

    values = {name: view_as_tensor(value) for name, value in features.values.items()}
    if family_of(config).tile_axis:
        values = {name: value[0] for name, value in values.items()}  # the axis of prompts
    if "image_grid_thw" not in values:  # one picture, which vLLM also asks the tiles of, under one name or another
        tiles = torch.tensor([len(values["pixel_values"])])
        values |= {"num_patches": tiles, "image_num_patches": tiles}
        values["image_token_id"] = torch.tensor(config.image_token_id)
    return BatchFeature(values)


def _find_spans(token_ids: list[int], features: ImageFeatures, config: Any) -> list[tuple[int, int]]:
    """Return (start, length) of each picture's tokens in the prompt; without grids there is one picture.

    With two pictures of 2 and 3 tokens, the prompt `[7, img, img, 8, img, img, img]` gives [(1, 2), (4, 3)].
    """
    if "image_grid_thw" not in features.values:
        found = [place for place, token in enumerate(token_ids) if token == config.image_token_id]
        if not found:
            raise ValueError("engine and learner would read the pictures differently: a picture and no image tokens")
        return [(found[0], found[-1] + 1 - found[0])]

    # Runs of image tokens in the prompt, one for each picture.
    runs = groupby(range(len(token_ids)), key=lambda place: token_ids[place] == config.image_token_id)
    places = [list(run) for is_image, run in runs if is_image]
    lengths = [len(run) for run in places]

    # What the grids say of them: (images, 3) of frames, rows and columns of patches, and so many patches a token.
    grids = features.values["image_grid_thw"]
    patches_per_token = config.vision_config.spatial_merge_size**2
    embeds = features.values.get("image_embeds")
    patches = len(features.values["pixel_values"]) if embeds is None else len(embeds) * patches_per_token
    if lengths != (grids.prod(1) // patches_per_token).tolist() or patches != grids.prod(1).sum():
        raise ValueError(
            "engine and learner would read the pictures differently: "
            f"{lengths} image tokens, grids {grids.tolist()}, {patches} patches"
        )
    return [(run[0], len(run)) for run in places]
