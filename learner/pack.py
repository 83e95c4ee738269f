"""Several groups as one sequence: each prompt once, its completions as branches over it.

    prompt A | branch A1 | branch A2 | prompt B | branch B1 | ...

A branch sees its own prompt and itself, and its positions go on where the prompt's end, so every token's log-prob is
what it would be in a row of its own: a G-th of the work and, without padding, the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError, ModelError
from common.types import Completion, Prompt, ScoredGroup
from learner.objective import advantages

PROMPT = -1  # branch of a prompt's tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """S tokens in, one log-prob out for each of all the groups' completion tokens, in order."""

    ids: Tensor  # (1, S) int64
    positions: Tensor  # (3, 1, S) int64: time, height, width
    mask: Tensor  # (1, 1, S, S) added to the attention scores: 0 where query (third axis) may see key, else lowest
    images: dict[str, Tensor]  # the model's image inputs, all prompts' in order
    source: Tensor  # (tokens,) int64: where in S each completion token is predicted
    target: Tensor  # (tokens,) int64: its id
    row: Tensor  # (tokens,) int64: its completion
    engine_logp: Tensor  # (tokens,) float32: its log-prob when it was sampled
    advantage: Tensor  # (completions,) float32


def check_family(config: Any) -> None:
    """ModelError for a model whose attention the block mask cannot describe."""
    layers = config.get_text_config().layer_types
    attention = config._attn_implementation  # noqa: SLF001  # there is no public way to read it
    if "sliding_attention" in layers or attention != "sdpa":
        raise ModelError(
            "the learner needs full attention through sdpa",
            got=f"layers {layers}, attention {attention}",
            remedy="use a Qwen2-VL or Qwen2.5-VL without a sliding window",
        )


def build_pack(groups: Sequence[ScoredGroup], model: Any, *, banned: Sequence[int], tower_runs: bool = True) -> Pack:
    """Tensors of `groups` on the model's device, built once and used by policy and reference.

    Args:
        model: the Hugging Face model; its config and rope positions are used, its weights are not.
        banned: ids that neither engine nor learner gives any probability.
        tower_runs: the model sees pixels; False where features of its frozen tower come in their place.

    Raises DataError naming the prompt if its image tokens, grid and pixels disagree, or if a completion holds a banned
    id, which would have log-prob -inf.
    """
    ids, positions, owner, branch = [], [], [], []
    source, target, row, rows = [], [], [], 0
    offset = 0
    for index, scored in enumerate(groups):
        prompt_ids, prompt_positions = _prompt(scored.prompt, model)
        ids.append(prompt_ids)
        positions.append(prompt_positions)
        owner += [index] * len(prompt_ids)
        branch += [PROMPT] * len(prompt_ids)
        offset += len(prompt_ids)
        last, follow = offset - 1, int(prompt_positions.max()) + 1
        for completion in scored.group.completions:
            tokens = _completion(completion, scored.prompt, banned)
            fed = len(tokens) - 1  # the last token is predicted, never read
            ids.append(tokens[:-1])
            positions.append((torch.arange(fed) + follow).expand(3, -1))
            owner += [index] * fed
            branch += [rows] * fed
            source += [last, *range(offset, offset + fed)]
            target.append(tokens)
            row += [rows] * len(tokens)
            offset, rows = offset + fed, rows + 1
    images = _images([scored.prompt for scored in groups])
    if tower_runs and not images:  # ZeRO needs the vision tower run on every rank: one blank image that nobody looks at
        images = _blank(model.config.vision_config)
        ids.append(torch.tensor([model.config.image_token_id]))
        positions.append(torch.zeros(3, 1, dtype=torch.long))
        owner.append(len(groups))
        branch.append(PROMPT)
    on = model.device
    sampled = [c for scored in groups for c in scored.group.completions]
    return Pack(
        ids=torch.cat(ids)[None].to(on),
        positions=torch.cat(positions, 1)[:, None].to(on),
        mask=_block_mask(torch.tensor(owner, device=on), torch.tensor(branch, device=on), model.dtype),
        images={name: tensor.to(on) for name, tensor in images.items()},
        source=torch.tensor(source, device=on),
        target=torch.cat(target).to(on),
        row=torch.tensor(row, device=on),
        engine_logp=torch.tensor([logp for c in sampled for logp in c.logprobs], dtype=torch.float32, device=on),
        advantage=torch.cat([advantages(torch.tensor(g.rewards, dtype=torch.float32)) for g in groups]).to(on),
    )


def _prompt(prompt: Prompt, model: Any) -> tuple[Tensor, Tensor]:
    """(T,) ids and (3, T) rope positions."""
    ids = torch.tensor(prompt.token_ids)
    is_image = ids == model.config.image_token_id
    features, merged = prompt.features, model.config.vision_config.spatial_merge_size**2
    grids = torch.from_numpy(features["image_grid_thw"]) if features else torch.empty(0, 3, dtype=torch.long)
    patches, held = int(grids.prod(1).sum()), _patches(features, merged)
    if int(is_image.sum()) * merged != patches or held != patches:
        raise DataError(
            f"prompt {prompt.id}: its tokens, image grid and pixels disagree",
            got=f"{int(is_image.sum())} image tokens, grid {grids.tolist()}, {held} patches",
            remedy="make ids and pixels with the same processor settings, and never cut a prompt",
        )
    positions, _ = model.model.get_rope_index(
        ids[None], mm_token_type_ids=is_image.int()[None], image_grid_thw=grids if len(grids) else None
    )
    return ids, positions[:, 0]


def _patches(features: Mapping[str, np.ndarray[Any, Any]], merged: int) -> int:
    if "image_embeds" in features:
        return len(features["image_embeds"]) * merged
    return len(features["pixel_values"]) if features else 0


def _completion(completion: Completion, prompt: Prompt, banned: Sequence[int]) -> Tensor:
    """(C,) ids."""
    if found := set(completion.token_ids).intersection(banned):
        raise DataError(
            f"a completion of {prompt.id} holds banned tokens",
            got=f"ids {sorted(found)}",
            remedy="give engine and learner the same list of banned tokens",
        )
    return torch.tensor(completion.token_ids)


def _images(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Every image input, concatenated in prompt order; none without a picture."""
    held = [prompt.features for prompt in prompts if prompt.features]
    names = held[0] if held else ()
    return {name: torch.from_numpy(np.concatenate([features[name] for features in held])) for name in names}


def _blank(vision: Any) -> dict[str, Tensor]:
    """The smallest image there is: one merged token."""
    side = vision.spatial_merge_size
    volume = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {"pixel_values": torch.zeros(side * side, volume), "image_grid_thw": torch.tensor([[1, side, side]])}


def _block_mask(owner: Tensor, branch: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, 1, S, S) from (S,) group and (S,) branch of every token. Additive: a boolean one is right in sdpa only."""
    same = (owner[:, None] == owner) & ((branch == PROMPT) | (branch[:, None] == branch))
    hidden = torch.full(same.shape, torch.finfo(dtype).min, dtype=dtype, device=same.device)
    return hidden.masked_fill_(same.tril(), 0.0)[None, None]
