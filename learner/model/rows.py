"""Groups as rows of their own, for a family that cannot share a prompt: every prompt is read G times.

Right and slow: an ordinary batch, padded at its end, under the model's own causal mask and rope positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.types import ScoredGroup
from learner.model.pack import CompletionTokens, Pack, build_rewards, refuse_banned
from learner.model.prompt_inputs import join_prompts, list_forward_inputs, make_blank_picture, read_prompt


def build_rows(
    groups: Sequence[ScoredGroup],
    model: Any,
    *,
    banned: Sequence[int],
    tower_runs: bool = True,
    advantages: Sequence[Sequence[float]] | None = None,
) -> Pack:
    """Build the same Pack as `build_pack`, with (R, T + C) ids: a completion a row, its prompt before it.

    `source` counts the positions of all rows, one row after the other.
    """
    pairs = [(scored.prompt, c) for scored in groups for c in scored.group.completions]
    said = CompletionTokens.of([completion for _, completion in pairs])
    refuse_banned(said, groups, banned)
    prompts = [read_prompt(prompt, model, {})[0] for prompt, _ in pairs]
    rows = [
        torch.cat([ids, torch.tensor(completion.token_ids[:-1], dtype=torch.long)])
        for ids, (_, completion) in zip(prompts, pairs, strict=True)
    ]
    images = join_prompts([prompt for prompt, _ in pairs], model)
    if tower_runs and not images:  # as in a pack: every rank runs the vision tower
        ids, images = make_blank_picture(model)
        rows.append(ids)
    batch = pad_sequence(rows, batch_first=True)
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    starts = np.arange(len(prompts)) * batch.shape[1] + [len(ids) - 1 for ids in prompts]
    on = model.device
    return Pack(
        ids=batch.to(on),
        positions=None,
        attention={"attention_mask": real.to(on)},
        images={name: tensor.to(on) for name, tensor in (images | _mark_pictures(batch, model)).items()},
        source=torch.from_numpy(starts[said.row] + said.place).to(on),
        target=torch.from_numpy(said.target).to(on),
        row=torch.from_numpy(said.row).to(on),
        engine_logp=torch.tensor([lp for _, c in pairs for lp in c.logprobs], dtype=torch.float32, device=on),
        **build_rewards(groups, advantages, on),
    )


def _mark_pictures(ids: Tensor, model: Any) -> dict[str, Tensor]:
    """Return the mask of image tokens, for forwards that take one: without positions they cannot tell."""
    name = "mm_token_type_ids"
    return {name: (ids == model.config.image_token_id).int()} if name in list_forward_inputs(model) else {}
