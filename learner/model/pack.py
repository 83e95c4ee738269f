"""Several groups as one sequence: each prompt once, its completions as branches over it.

    prompt A | branch A1 | branch A2 | prompt B | branch B1 | ...

A branch attends to its own prompt and to itself, and its rope positions go on where those of the prompt end. So every
token has the log-prob it would have in a row of its own: a G-th of the work and, without padding, the same numbers.

A prompt p of two tokens with completions (a0 a1), (b0) and (c0 c1 c2). The last token of a completion is predicted but
never fed, so the pack has S = 5 positions and N = 6 completion tokens:

    position    0   1   2   3   4
    ids        p0  p1  a0  c0  c1
    rope        0   1   2   2   3

    target     a0  a1  b0  c0  c1  c2     the N tokens to score
    source      1   2   1   1   3   4     the position that predicts each
    row         0   0   1   2   2   2     its completion, of R = 3

`learner.model.layout` says what each position attends to; `learner.objective.records` lists the axis letters.
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

from common.config.objective import ObjectiveConfig
from common.errors import DataError
from common.types import Completion, ScoredGroup
from learner.model.attention import make_pack_inputs
from learner.model.last_layer import ROWS
from learner.model.layout import Layout, Span
from learner.model.prompt_inputs import join_prompts, make_blank_picture, read_prompt
from learner.objective.advantages import step_advantages
from learner.objective.records import CLS_RL, Coefficients, LossInputs, StepCounts

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The tensors of some groups: S positions go into the model, N log-probs of completion tokens come out."""

    ids: Tensor  # (1, S) int64; (rows, T) where no prompt is shared, see `learner.model.rows`
    positions: Tensor | None  # rope, int64: (3, 1, S) for time, height, width, or (1, S); None where none is shared
    attention: dict[str, Any]  # keywords of the model: what attends to what, and which positions are read in the end
    images: dict[str, Tensor]  # keywords of the model: the pictures of all prompts, in order
    source: Tensor  # (N,) int64: the position that predicts each completion token
    target: Tensor  # (N,) int64: its id
    row: Tensor  # (N,) int64: its completion
    group: Tensor  # (R,) int64: the group of each completion, from 0
    engine_logp: Tensor  # (N,) float32: log-prob of the token when it was sampled
    reward: Tensor  # (R,) float32
    advantage: Tensor  # (R,) float32
    truncated: Tensor  # (R,) bool: the completion was cut at its longest

    def inputs(
        self,
        logp: Tensor,
        ref_logp: Tensor | None,
        *,
        step: StepCounts,
        coefficients: Coefficients,
        old_logp: Tensor | None = None,
        entropy: Tensor | None = None,
        objective: ObjectiveConfig = CLS_RL,
        longest: int = 1,
        corrected: Tensor | None = None,
    ) -> LossInputs:
        """Return what a loss reads: this pack and its (N,) log-probs under policy and reference; see `LossInputs`."""
        return LossInputs(
            logp=logp,
            old_logp=old_logp,
            ref_logp=ref_logp,
            engine_logp=self.engine_logp,
            entropy=entropy,
            row=self.row,
            group=self.group,
            reward=self.reward,
            advantage=self.advantage,
            truncated=self.truncated,
            corrected=corrected,
            step=step,
            coefficients=coefficients,
            objective=objective,
            longest=longest,
        )


def build_pack(
    groups: Sequence[ScoredGroup],
    model: Any,
    *,
    banned: Sequence[int],
    tower_runs: bool = True,
    advantages: Sequence[Sequence[float]] | None = None,
) -> Pack:
    """Build the tensors of `groups` on the model's device, once for policy and reference.

    Args:
        model: the Hugging Face model; its config and rope positions are used, its weights are not.
        banned: ids that neither engine nor learner gives any probability.
        tower_runs: the model reads pixels; False where features of its frozen vision tower come in their place.
        advantages: (G,) of each group, as a step compares them; None: those of GRPO, each group by itself.

    Raises DataError naming the prompt if its image tokens, grid and pixels disagree, or if a completion holds a banned
    id, which would have log-prob -inf.
    """
    completions = [c for scored in groups for c in scored.group.completions]
    said = CompletionTokens.of(completions)
    refuse_banned(said, groups, banned)
    known: dict[bytes, Tensor] = {}
    placed: list[_Placed] = []
    at = row = 0
    for scored in groups:
        rows = slice(row, row + len(scored.group.completions))
        placed.append(_place_group(*read_prompt(scored.prompt, model, known), said.of_rows(rows), at))
        at, row = placed[-1].span.end, rows.stop
    predicting = np.concatenate([one.source for one in placed])

    images = join_prompts([scored.prompt for scored in groups], model)
    if tower_runs and not images:  # ZeRO needs the vision tower run on every rank: a blank picture at the end
        blank_ids, images = make_blank_picture(model)
        axes = len(placed[0].positions[0])
        placed.append(_place_prompt(blank_ids, torch.zeros(axes, len(blank_ids), dtype=torch.long), at))

    on = model.device
    layout = Layout(spans=tuple(one.span for one in placed))
    places = torch.cat([part for one in placed for part in one.positions], 1)  # (axes, S)
    return Pack(
        ids=torch.cat([part for one in placed for part in one.ids])[None].to(on),
        positions=(places[:, None] if len(places) == 3 else places).to(on),
        attention=make_pack_inputs(layout, model) | {ROWS: torch.from_numpy(np.unique(predicting)).to(on)},
        images={name: tensor.to(on) for name, tensor in images.items()},
        source=torch.from_numpy(predicting).to(on),
        target=torch.from_numpy(said.target).to(on),
        row=torch.from_numpy(said.row).to(on),
        engine_logp=torch.tensor([logp for c in completions for logp in c.logprobs], dtype=torch.float32, device=on),
        **build_rewards(groups, advantages, on),
    )


class _Placed(NamedTuple):
    """One group at its positions of the pack, in pieces that only need to be joined."""

    span: Span
    ids: tuple[Tensor, ...]  # of the prompt, of all branches
    positions: tuple[Tensor, ...]  # rope, (axes, T) and (axes, fed tokens)
    source: Ints  # position that predicts each completion token


def _place_prompt(ids: Tensor, positions: Tensor, at: int) -> _Placed:
    """Place a prompt without branches from position `at` on."""
    end = at + len(ids)
    return _Placed(Span(start=at, fork=end, ends=()), (ids,), (positions,), np.empty(0, np.int64))


def _place_group(ids: Tensor, positions: Tensor, said: CompletionTokens, at: int) -> _Placed:
    """Place a prompt from position `at` on, and each completion after it as a branch.

    Args:
        ids: (T,) of the prompt, as `positions` (axes, T).
        said: the completion tokens of this group alone.
    """
    fork = at + len(ids)
    ends = fork + np.cumsum(np.diff(said.edges) - 1)
    span = Span(start=at, fork=fork, ends=tuple(ends.tolist()))

    # The rope positions of every branch follow those of the prompt.
    follow = int(positions.max()) + 1
    branches = torch.from_numpy(said.place[said.fed] + follow).expand(len(positions), -1)

    # The first token of a completion is predicted by the prompt's last, any other by the token before it.
    fed_before: Ints = np.cumsum(said.fed) - said.fed  # positions of the branches before each token
    source: Ints = np.where(said.place > 0, fork + fed_before - 1, fork - 1)
    return _Placed(span, (ids, torch.from_numpy(said.target[said.fed])), (positions, branches), source)


def build_rewards(
    groups: Sequence[ScoredGroup], advantages: Sequence[Sequence[float]] | None, device: torch.device
) -> dict[str, Tensor]:
    """Return `group`, `reward`, `advantage` and `truncated` of a Pack, (R,) each."""
    rewards = [torch.tensor(scored.rewards, dtype=torch.float32) for scored in groups]
    compared = step_advantages(groups) if advantages is None else map(torch.tensor, advantages)
    cut = [one.finish_reason == "length" for scored in groups for one in scored.group.completions]
    sizes = torch.tensor([len(own) for own in rewards])
    made = {
        "group": torch.arange(len(rewards)).repeat_interleave(sizes),
        "reward": torch.cat(rewards),
        "advantage": torch.cat(list(compared)),
        "truncated": torch.tensor(cut),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


class CompletionTokens(NamedTuple):
    """All completion tokens of some groups, one after the other."""

    target: Ints  # (N,) ids
    row: Ints  # (N,) the completion of each token
    place: Ints  # (N,) its place in that completion, from 0
    fed: npt.NDArray[np.bool_]  # (N,) the model reads it: the last token of a completion is only predicted
    edges: Ints  # (R + 1,) where each completion begins, and the end of all

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> CompletionTokens:
        """Lay the tokens of all completions end to end."""
        lengths = np.array([len(c.token_ids) for c in completions])
        edges = np.concatenate([[0], np.cumsum(lengths)])
        target = np.fromiter(chain.from_iterable(c.token_ids for c in completions), np.int64, edges[-1])
        fed = np.ones(len(target), np.bool_)
        fed[edges[1:] - 1] = False
        place = np.arange(len(target)) - np.repeat(edges[:-1], lengths)
        return cls(target, np.repeat(np.arange(len(lengths)), lengths), place, fed, edges)

    def of_rows(self, rows: slice) -> CompletionTokens:
        """Return the tokens of some completions; `row` and `edges` still count from the first of all."""
        own = slice(self.edges[rows.start], self.edges[rows.stop])
        edges = self.edges[rows.start : rows.stop + 1]
        return CompletionTokens(self.target[own], self.row[own], self.place[own], self.fed[own], edges)


def refuse_banned(said: CompletionTokens, groups: Sequence[ScoredGroup], banned: Sequence[int]) -> None:
    """Raise DataError naming the prompt if a completion holds a banned id, which would have log-prob -inf."""
    found = np.isin(said.target, np.array(banned, np.int64))
    if not found.any():
        return
    names = [scored.prompt.id for scored in groups for _ in scored.group.completions]
    raise DataError(
        f"a completion of {names[said.row[found][0]]} holds banned tokens",
        got=f"ids {np.unique(said.target[found]).tolist()}",
        remedy="give engine and learner the same list of banned tokens",
    )
