"""One cell of the learner's benchmarks: a group of G completions of C tokens over a prompt of P, learned from in both
ways. Shared: one pack, through Rollcall's own code. Naive: a batch of G whole rows, logits of the completions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.types import Completion, Group, Prompt, ScoredGroup
from tests.benchmarks import flops, w1

SMALL = 224  # pixels: the picture of a prompt too short for one of 384


class Cell(NamedTuple):
    """Sizes of one group."""

    g: int
    p: int
    c: int

    def __str__(self) -> str:
        return f"G={self.g} P={self.p} C={self.c}"


def group(cell: Cell, *, number: int = 0, lengths: Sequence[int] | None = None) -> ScoredGroup:
    """Random completions, of `lengths` tokens if given; a prompt under 264 tokens has the smaller picture."""
    size = w1.SIZE if cell.p >= w1.PROMPT else SMALL
    prompt = w1.prompt(cell.p, size=size, number=number)
    draw = torch.Generator().manual_seed(number)
    completions = tuple(
        Completion(
            token_ids=tuple(torch.randint(1000, 8000, (length,), generator=draw).tolist()),
            logprobs=(-9.0,) * length,
            text="",
            finish_reason="length",
        )
        for length in lengths or [cell.c] * cell.g
    )
    rewards = tuple(torch.randn(len(completions), generator=draw).tolist())
    sampled = Group(
        prompt_id=prompt.id, completions=completions, seed=0, origin="sampled", engine_id="none", weights_version=0
    )
    return ScoredGroup(prompt=prompt, group=sampled, rewards_by_name={"random": rewards}, rewards=rewards)


def shared(model: Any, groups: Sequence[ScoredGroup]) -> None:
    """Forward and backward of one pack, building it included; gradients add up on the model."""
    from learner.model.head import ScoringSpec
    from learner.model.logprobs import packed_logprobs
    from learner.model.pack import build_pack

    pack = build_pack(groups, model, banned=())
    logp = packed_logprobs(model, pack, ScoringSpec()).logp
    loss(logp, pack.advantage[pack.row]).backward()


def naive(model: Any, scored: ScoredGroup, *, tokens_per_pass: int = 8192) -> None:
    """The same of whole rows, as many a pass as `tokens_per_pass` holds: that bounds memory, not arithmetic."""
    from learner.objective.advantages import advantages

    advantage = advantages(torch.tensor(scored.rewards)).to(model.device)
    length = len(scored.prompt.token_ids) + len(scored.group.completions[0].token_ids)
    rows = max(1, tokens_per_pass // length)
    for first in range(0, len(advantage), rows):
        chosen = slice(first, first + rows)
        logp = rows_logp(model, scored.prompt, [one.token_ids for one in scored.group.completions[chosen]])
        (loss(logp, advantage[chosen, None].expand_as(logp)) * logp.shape[0] / len(advantage)).backward()


def rows_logp(model: Any, prompt: Prompt, completions: Sequence[tuple[int, ...]]) -> Tensor:
    """(rows, C) log-probs of completions of one length, each a row with the whole prompt and picture before it."""
    count, length = len(completions), len(completions[0])
    ids = torch.tensor([[*prompt.token_ids, *tokens] for tokens in completions], device=model.device)
    images = {name: torch.as_tensor(value).to(model.device) for name, value in prompt.features.items()}
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        **{name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in images.items()},
        logits_to_keep=length + 1,
        use_cache=False,
    )
    logits = output.logits[:, :-1].float()
    logp: Tensor = logits.gather(-1, ids[:, -length:, None])[..., 0] - logits.logsumexp(-1)
    return logp


def loss(logp: Tensor, advantage: Tensor) -> Tensor:
    """() on-policy policy gradient: the mean over all tokens, which here are equally many in every row."""
    return -(logp * advantage).mean()


def needed(config: Any, groups: Sequence[ScoredGroup]) -> int:
    """FLOPs of a forward and backward over `groups`, prompts once."""
    return (1 + flops.BACKWARD) * sum(
        flops.group_forward(
            config,
            prompt=len(scored.prompt.token_ids),
            grids=[tuple(grid) for grid in scored.prompt.features["image_grid_thw"].tolist()],
            completions=[len(one.token_ids) for one in scored.group.completions],
        )
        for scored in groups
    )


def gradient(model: Any) -> Tensor:
    """All gradients as one float64 vector, taken off the model."""
    flat = torch.cat([one.grad.double().reshape(-1).cpu() for one in model.parameters() if one.grad is not None])
    model.zero_grad(set_to_none=True)
    return flat
