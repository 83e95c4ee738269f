"""Several groups as one sequence: each prompt once, its completions as branches over it.

    prompt A | branch A1 | branch A2 | prompt B | branch B1 | ...

A branch sees its own prompt and itself, and its positions go on where the prompt's end, so every token's log-prob is
what it would be in a row of its own: a G-th of the work and, without padding, the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.config.schema import RewardConfig
from common.errors import DataError
from common.types import Completion, ScoredGroup
from learner.model.attention import pack_inputs
from learner.model.last_layer import ROWS
from learner.model.layout import Layout, Span
from learner.model.prompt_inputs import blank, join_prompts, read_prompt
from learner.objective import SUMMED, LossInputs, group_advantages

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """S tokens in, one log-prob out for each of all the groups' completion tokens, in order."""

    ids: Tensor  # (1, S) int64; rows of their own, without positions, where nothing is shared: see `learner.model.rows`
    positions: Tensor | None  # (3, 1, S) int64: time, height, width; (1, S) in families with one axis
    attention: dict[str, Any]  # the model's inputs that say who sees whom, and who is read in the end
    images: dict[str, Tensor]  # the model's image inputs, all prompts' in order
    source: Tensor  # (tokens,) int64: where in S each completion token is predicted
    target: Tensor  # (tokens,) int64: its id
    row: Tensor  # (tokens,) int64: its completion
    group: Tensor  # (completions,) int64: its group, from 0
    engine_logp: Tensor  # (tokens,) float32: its log-prob when it was sampled
    reward: Tensor  # (completions,) float32
    advantage: Tensor  # (completions,) float32

    def inputs(self, logp: Tensor, ref_logp: Tensor | None, *, sequences: int, groups: int, beta: float) -> LossInputs:
        """What a loss is a function of: this pack and its log-probs under policy and reference.

        Args:
            sequences: of the whole step, as `groups`.
        """
        return LossInputs(
            logp=logp,
            ref_logp=ref_logp,
            engine_logp=self.engine_logp,
            row=self.row,
            group=self.group,
            reward=self.reward,
            advantage=self.advantage,
            sequences=sequences,
            groups=groups,
            beta=beta,
        )


def build_pack(
    groups: Sequence[ScoredGroup],
    model: Any,
    *,
    banned: Sequence[int],
    tower_runs: bool = True,
    reward: RewardConfig = SUMMED,
) -> Pack:
    """Tensors of `groups` on the model's device, built once and used by policy and reference.

    Args:
        model: the Hugging Face model; its config and rope positions are used, its weights are not.
        banned: ids that neither engine nor learner gives any probability.
        tower_runs: the model sees pixels; False where features of its frozen tower come in their place.
        reward: how rewards become advantages.

    Raises DataError naming the prompt if its image tokens, grid and pixels disagree, or if a completion holds a banned
    id, which would have log-prob -inf.
    """
    sampled = [c for scored in groups for c in scored.group.completions]
    drawn = Drawn.of(sampled)
    refuse_banned(drawn, groups, banned)
    ids, positions, spans, source = [], [], [], []
    known: dict[bytes, Tensor] = {}
    at = row = 0
    for scored in groups:
        rows = slice(row, row + len(scored.group.completions))
        own = slice(drawn.edges[rows.start], drawn.edges[rows.stop])  # this group's tokens
        prompt_ids, prompt_positions = read_prompt(scored.prompt, model, known)
        fork, fed = at + len(prompt_ids), drawn.fed[own]
        place = drawn.place[own]
        ids += [prompt_ids, torch.from_numpy(drawn.target[own][fed])]
        follow = int(prompt_positions.max()) + 1
        positions += [prompt_positions, torch.from_numpy(place[fed] + follow).expand(len(prompt_positions), -1)]
        read: Ints = np.cumsum(fed) - fed  # tokens of the branches before this one
        source.append(np.where(place > 0, fork + read - 1, fork - 1))
        ends = fork + np.cumsum(np.diff(drawn.edges[rows.start : rows.stop + 1]) - 1)
        spans.append(Span(start=at, fork=fork, ends=tuple(ends.tolist())))
        at, row = spans[-1].end, rows.stop
    predicting = np.concatenate(source)
    images = join_prompts([scored.prompt for scored in groups], model)
    if tower_runs and not images:  # ZeRO needs the vision tower run on every rank: one blank image that nobody looks at
        blank_ids, images = blank(model)
        ids.append(blank_ids)
        positions.append(torch.zeros(len(positions[0]), len(blank_ids), dtype=torch.long))
        spans.append(Span(start=at, fork=at + len(blank_ids), ends=()))
    on, places = model.device, torch.cat(positions, 1)
    return Pack(
        ids=torch.cat(ids)[None].to(on),
        positions=(places[:, None] if len(places) == 3 else places).to(on),
        attention=pack_inputs(Layout(spans=tuple(spans)), model)
        | {ROWS: torch.from_numpy(np.unique(predicting)).to(on)},
        images={name: tensor.to(on) for name, tensor in images.items()},
        source=torch.from_numpy(predicting).to(on),
        target=torch.from_numpy(drawn.target).to(on),
        row=torch.from_numpy(drawn.row).to(on),
        engine_logp=torch.tensor([logp for c in sampled for logp in c.logprobs], dtype=torch.float32, device=on),
        **build_rewards(groups, reward, on),
    )


def build_rewards(groups: Sequence[ScoredGroup], reward: RewardConfig, device: torch.device) -> dict[str, Tensor]:
    """`group`, `reward` and `advantage` of all completions of a pack."""
    rewards = [torch.tensor(scored.rewards, dtype=torch.float32) for scored in groups]
    sizes = torch.tensor([len(own) for own in rewards])
    made = {
        "group": torch.arange(len(rewards)).repeat_interleave(sizes),
        "reward": torch.cat(rewards),
        "advantage": torch.cat([group_advantages(scored, reward) for scored in groups]),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


class Drawn(NamedTuple):
    """All completion tokens of some groups, one after the other."""

    target: Ints  # (tokens,) ids
    row: Ints  # (tokens,) its completion
    place: Ints  # (tokens,) in its completion
    fed: npt.NDArray[np.bool_]  # (tokens,) whether the model reads it: the last one of a completion is only predicted
    edges: Ints  # (completions + 1,) where each begins

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> Drawn:
        lengths = np.array([len(c.token_ids) for c in completions])
        edges = np.concatenate([[0], np.cumsum(lengths)])
        target = np.fromiter(chain.from_iterable(c.token_ids for c in completions), np.int64, edges[-1])
        fed = np.ones(len(target), np.bool_)
        fed[edges[1:] - 1] = False
        place = np.arange(len(target)) - np.repeat(edges[:-1], lengths)
        return cls(target, np.repeat(np.arange(len(lengths)), lengths), place, fed, edges)


def refuse_banned(drawn: Drawn, groups: Sequence[ScoredGroup], banned: Sequence[int]) -> None:
    """DataError naming the prompt whose completion holds one, which would have log-prob -inf."""
    found = np.isin(drawn.target, np.array(banned, np.int64))
    if not found.any():
        return
    names = [scored.prompt.id for scored in groups for _ in scored.group.completions]
    raise DataError(
        f"a completion of {names[drawn.row[found][0]]} holds banned tokens",
        got=f"ids {np.unique(drawn.target[found]).tolist()}",
        remedy="give engine and learner the same list of banned tokens",
    )
