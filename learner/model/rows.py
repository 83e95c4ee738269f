"""Groups as rows of their own, for a family that is not known to take a shared prefix: every prompt is read G times.

Right and slow: an ordinary batch, padded at its end, under the model's own causal mask and positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.config.schema import RewardConfig
from common.types import ScoredGroup
from learner.model.pack import Drawn, Pack, build_rewards, refuse_banned
from learner.model.prompt_inputs import blank, forward_inputs, join_prompts, read_prompt
from learner.objective import SUMMED


def build_rows(
    groups: Sequence[ScoredGroup],
    model: Any,
    *,
    banned: Sequence[int],
    tower_runs: bool = True,
    reward: RewardConfig = SUMMED,
) -> Pack:
    """As `build_pack`, with (rows, T) ids: a completion a row, its prompt before it.

    `source` then counts the places of all rows, one row after the other.
    """
    sampled = [(scored.prompt, c) for scored in groups for c in scored.group.completions]
    drawn = Drawn.of([completion for _, completion in sampled])
    refuse_banned(drawn, groups, banned)
    prompts = [read_prompt(prompt, model, {})[0] for prompt, _ in sampled]
    rows = [
        torch.cat([ids, torch.tensor(completion.token_ids[:-1], dtype=torch.long)])
        for ids, (_, completion) in zip(prompts, sampled, strict=True)
    ]
    images = join_prompts([prompt for prompt, _ in sampled], model)
    if tower_runs and not images:  # as in a pack: every rank runs the tower
        ids, images = blank(model)
        rows.append(ids)
    batch = pad_sequence(rows, batch_first=True)
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    starts = np.arange(len(prompts)) * batch.shape[1] + [len(ids) - 1 for ids in prompts]
    on = model.device
    return Pack(
        ids=batch.to(on),
        positions=None,
        attention={"attention_mask": real.to(on)},
        images={name: tensor.to(on) for name, tensor in (images | _types(batch, model)).items()},
        source=torch.from_numpy(starts[drawn.row] + drawn.place).to(on),
        target=torch.from_numpy(drawn.target).to(on),
        row=torch.from_numpy(drawn.row).to(on),
        engine_logp=torch.tensor([lp for _, c in sampled for lp in c.logprobs], dtype=torch.float32, device=on),
        **build_rewards(groups, reward, on),
    )


def _types(ids: Tensor, model: Any) -> dict[str, Tensor]:
    """What tells pictures from text, where the forward asks: it has no positions to go by here."""
    name = "mm_token_type_ids"
    return {name: (ids == model.config.image_token_id).int()} if name in forward_inputs(model) else {}
