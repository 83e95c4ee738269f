"""Log-probs, entropies and gradients of the head, whole or a block at a time, against plain log_softmax."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from common.errors import ModelError
from learner.model.head import ScoringHead, ScoringSpec, make_scoring_head

TOKENS, WIDTH, VOCABULARY = 13, 8, 30
WHOLE, BLOCKS, ONE = 512.0, 4 * VOCABULARY * 5 / 2**20, 1e-9  # MiB of logits: all at once; five, five, three; one
TARGET = torch.arange(TOKENS) + 3
PLAIN = ScoringSpec(banned=(0, 2))
SPECS: dict[str, tuple[ScoringSpec, float | None]] = {  # each with the softcap of its model
    "plain": (PLAIN, None),
    "warm": (replace(PLAIN, temperature=0.7), None),
    "cut": (replace(PLAIN, top_k=9, top_p=0.9), None),
    "capped": (replace(PLAIN, temperature=1.3), 2.0),
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


def naive(
    states: Tensor, weight: Tensor, spec: ScoringSpec, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    logits = states[0] @ weight.T
    if softcap:
        logits = (logits / softcap).tanh() * softcap
    logits = (logits / spec.temperature).index_fill(-1, torch.tensor(spec.banned), -torch.inf)
    kept = None
    if spec.top_k or spec.top_p < 1:
        ordered, index = logits.detach().sort(descending=True)
        share = ordered.softmax(-1)
        place = torch.arange(VOCABULARY).expand_as(share)
        chosen = (place < spec.top_k) & (ordered[:, : spec.top_k].softmax(-1).cumsum(-1)[:, [-1]] > 0)
        top = ordered.masked_fill(~chosen, -torch.inf).softmax(-1)
        chosen &= top.cumsum(-1) - top < spec.top_p
        kept = torch.zeros_like(chosen).scatter(-1, index, chosen).scatter(-1, TARGET[:, None], True)
        logits = logits.masked_fill(~kept, -torch.inf)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p.isinf(), 0)).sum(-1)
    return log_p.gather(-1, TARGET[:, None])[:, 0], entropy, kept


@pytest.mark.parametrize("logits_mb", [WHOLE, BLOCKS, ONE])
@pytest.mark.parametrize("name", SPECS)
def test_scores_are_the_naive_ones(name: str, logits_mb: float) -> None:
    model, (spec, softcap) = Model(), SPECS[name]
    states, head = hidden(), make_scoring_head(model)
    weight_of_each = torch.randn(TOKENS, generator=torch.Generator().manual_seed(2))
    with head.scoring(replace(spec, logits_mb=logits_mb), TARGET, softcap=softcap) as seen:
        logp = head(states)[0]
    wanted, entropy, kept = naive(states, head.weight, spec, softcap)
    torch.testing.assert_close(logp, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[0], entropy.detach(), rtol=0, atol=1e-5)
    assert (seen[1] is None) if kept is None else torch.equal(seen[1] if seen[1] is not None else kept[:0], kept)
    for found, right in zip(
        torch.autograd.grad(logp, (states, head.weight), weight_of_each),
        torch.autograd.grad(wanted, (states, head.weight), weight_of_each),
        strict=True,
    ):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_passes_its_gradient_on() -> None:
    head, states = make_scoring_head(Model()), hidden()
    head.weight.requires_grad_(False)
    with head.scoring(replace(PLAIN, logits_mb=BLOCKS), TARGET):
        (found,) = torch.autograd.grad(head(states).sum(), states)
    (wanted,) = torch.autograd.grad(naive(states, head.weight, PLAIN)[0].sum(), states)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_outside_of_scoring_it_is_the_linear_layer_it_was() -> None:
    model = Model()
    names, states = set(model.state_dict()), hidden()
    wanted = copy.deepcopy(model).head(states)
    head = make_scoring_head(model)
    with pytest.raises(RuntimeError), head.scoring(PLAIN, TARGET):
        head(states[..., :-1])
    assert torch.equal(head(states), wanted)
    assert set(model.state_dict()) == names
    assert make_scoring_head(model) is head is model.head
    assert isinstance(copy.deepcopy(model).head, ScoringHead)


def test_no_block_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def linear(rows: Tensor, weight: Tensor) -> Tensor:
        made.append(4 * len(rows) * len(weight))
        return rows @ weight.T

    monkeypatch.setattr(nn.functional, "linear", linear)
    head, states = make_scoring_head(Model()), hidden()
    with head.scoring(replace(PLAIN, logits_mb=BLOCKS), TARGET):
        head(states).sum().backward()
    assert made == [600, 600, 360] * 2


def test_another_head_is_refused() -> None:
    model = Model()
    model.head = nn.Linear(WIDTH, VOCABULARY)
    with pytest.raises(ModelError, match="without bias"):
        make_scoring_head(model)
