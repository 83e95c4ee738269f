"""Log-probs, entropies and gradients of the head, whole or a block at a time, against plain log_softmax."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from common.errors import ModelError
from learner.model.head import Draw, ScoringHead, scoring_head

TOKENS, WIDTH, VOCABULARY = 13, 8, 30
WHOLE, BLOCKS = 1e9, 4 * VOCABULARY * 5.0  # all tokens at once; five, five and three
PLAIN = Draw(
    source=None,
    target=torch.arange(TOKENS) + 3,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    banned=torch.tensor([0, 2]),
    softcap=None,
    kept=None,
    block_bytes=WHOLE,
)
DRAWS = {
    "plain": PLAIN,
    "warm": replace(PLAIN, temperature=0.7),
    "cut": replace(PLAIN, top_k=9, top_p=0.9),
    "capped": replace(PLAIN, softcap=2.0, temperature=1.3),
}


class Model(nn.Module):
    """Only a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def hidden() -> Tensor:
    return torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def naive(states: Tensor, weight: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
    logits = states[0] @ weight.T
    if draw.softcap:
        logits = (logits / draw.softcap).tanh() * draw.softcap
    logits = (logits / draw.temperature).index_fill(-1, draw.banned, -torch.inf)
    kept = None
    if draw.cuts:
        ordered, index = logits.detach().sort(descending=True)
        share = ordered.softmax(-1)
        place = torch.arange(VOCABULARY).expand_as(share)
        chosen = (place < draw.top_k) & (ordered[:, : draw.top_k].softmax(-1).cumsum(-1)[:, [-1]] > 0)
        top = ordered.masked_fill(~chosen, -torch.inf).softmax(-1)
        chosen &= top.cumsum(-1) - top < draw.top_p
        kept = torch.zeros_like(chosen).scatter(-1, index, chosen).scatter(-1, draw.target[:, None], True)
        logits = logits.masked_fill(~kept, -torch.inf)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p.isinf(), 0)).sum(-1)
    return log_p.gather(-1, draw.target[:, None])[:, 0], entropy, kept


@pytest.mark.parametrize("block_bytes", [WHOLE, BLOCKS, 1.0])
@pytest.mark.parametrize("name", DRAWS)
def test_scores_are_the_naive_ones(name: str, block_bytes: float) -> None:
    model, draw = Model(), replace(DRAWS[name], block_bytes=block_bytes)
    states, head = hidden(), scoring_head(model)
    slope = torch.randn(TOKENS, generator=torch.Generator().manual_seed(2))
    with head.scoring(draw) as seen:
        logp = head(states)[0]
    wanted, entropy, kept = naive(states, head.weight, draw)
    torch.testing.assert_close(logp, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[0], entropy.detach(), rtol=0, atol=1e-5)
    assert (seen[1] is None) if kept is None else torch.equal(seen[1] if seen[1] is not None else kept[:0], kept)
    for found, right in zip(
        torch.autograd.grad(logp, (states, head.weight), slope),
        torch.autograd.grad(wanted, (states, head.weight), slope),
        strict=True,
    ):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_passes_its_gradient_on() -> None:
    head, states = scoring_head(Model()), hidden()
    head.weight.requires_grad_(False)
    with head.scoring(replace(PLAIN, block_bytes=BLOCKS)):
        (found,) = torch.autograd.grad(head(states).sum(), states)
    (wanted,) = torch.autograd.grad(naive(states, head.weight, PLAIN)[0].sum(), states)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_outside_of_scoring_it_is_the_linear_layer_it_was() -> None:
    model = Model()
    names, states = set(model.state_dict()), hidden()
    wanted = copy.deepcopy(model).head(states)
    head = scoring_head(model)
    with pytest.raises(RuntimeError), head.scoring(PLAIN):
        head(states[..., :-1])
    assert torch.equal(head(states), wanted)
    assert set(model.state_dict()) == names
    assert scoring_head(model) is head is model.head
    assert isinstance(copy.deepcopy(model).head, ScoringHead)


def test_no_block_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def linear(rows: Tensor, weight: Tensor) -> Tensor:
        made.append(4 * len(rows) * len(weight))
        return rows @ weight.T

    monkeypatch.setattr(nn.functional, "linear", linear)
    head, states = scoring_head(Model()), hidden()
    with head.scoring(replace(PLAIN, block_bytes=BLOCKS)):
        head(states).sum().backward()
    assert made == [600, 600, 360] * 2


def test_another_head_is_refused() -> None:
    model = Model()
    model.head = nn.Linear(WIDTH, VOCABULARY)
    with pytest.raises(ModelError, match="without bias"):
        scoring_head(model)
