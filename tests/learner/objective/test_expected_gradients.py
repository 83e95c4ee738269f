"""What every sampled objective climbs: its gradient summed over all groups that a small model can draw, each times its
probability, against what theory says of it.

With rewards of 0 and 1 the advantages of a group depend only on the number k of right answers among its G. The expected
gradient then is that of p, the probability of a right answer, times

    sum over k of Binomial(k; G, p) (k A_right(k) / p - (G - k) A_wrong(k) / (1 - p)) / G

The advantages below are from the papers, and no formula of ours is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import comb, sqrt

import pytest
import torch
from torch import Tensor

from common.config.objective import PRESETS, ObjectiveConfig
from learner.objective.advantages import COMPARISONS, StepRewards
from learner.objective.losses import LOSSES
from tests.helpers.losses import make_inputs

ANSWERS = list(product(range(2), repeat=2))  # two tokens each
RIGHT = [0.0, 1.0, 0.0, 0.0]
G = 4

# The advantages of right and wrong answers in a group, by the share m of right ones.
Pair = tuple[float, float]
PAPERS: dict[str, Callable[[float], Pair]] = {
    "group": lambda m: _over(m, sqrt(G / (G - 1) * m * (1 - m)) + 1e-4),
    "batch": lambda m: _over(m, sqrt(G / (G - 1) * m * (1 - m)) + 1e-4),  # the step is one group here
    "none": lambda m: _over(m, 1.0),
    "leave_one_out": lambda m: _over(m, (G - 1) / G),
    "mean": lambda m: _over(m, m) if m else (0.0, 0.0),
    "whitened": lambda m: _over(m, sqrt(2 * G / (2 * G - 1) * m * (1 - m)) + 1e-30),  # over 2 G tokens
    "whitened_baseline": lambda m: _over(m, sqrt(2 * G / (2 * G - 1) * m * (1 - m)) + 1e-30),
}
WHOLE = ("rloo", "luspo")  # whose loss is of the whole answer; the others' is a mean over its two tokens


def _over(m: float, scale: float) -> Pair:
    return ((1 - m) / scale, -m / scale)


def draw_model() -> Tensor:
    """(3, 2) logits: of the first token, and of the second after each."""
    return torch.tensor([[0.3, -0.2], [0.5, -0.9], [0.1, 0.4]], dtype=torch.float64, requires_grad=True)


def score(model: Tensor) -> Tensor:
    """(answers, tokens) log-probs."""
    logp = model.log_softmax(-1)
    return torch.stack([torch.stack([logp[0, first], logp[1 + first, second]]) for first, second in ANSWERS])


def policy_gradient(preset: str, model: Tensor, drawn: tuple[int, ...]) -> Tensor:
    """The gradient of one group's loss in the first update of a step."""
    objective = ObjectiveConfig.model_validate(PRESETS[preset])
    logp, lengths = score(model)[list(drawn)].flatten(), torch.full((G,), 2)
    reward = torch.tensor([RIGHT[answer] for answer in drawn], dtype=torch.float64)
    (advantage,) = COMPARISONS[objective.advantage](StepRewards(rewards=[reward], lengths=[lengths]))
    inputs = make_inputs(
        logp,
        row=[row for row in range(G) for _ in range(2)],
        reward=reward,
        advantage=advantage,
        longest=2,
        objective=objective,
    )
    (found,) = torch.autograd.grad(LOSSES[objective.loss](inputs).loss, model)
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_the_expected_gradient_is_the_papers(preset: str) -> None:
    model = draw_model()
    share = score(model).sum(-1).exp()
    expected = torch.zeros_like(model)
    for drawn in product(range(len(ANSWERS)), repeat=G):
        expected += share[list(drawn)].prod().detach() * policy_gradient(preset, model, drawn)

    right = (share * torch.tensor(RIGHT)).sum()
    (climbed,) = torch.autograd.grad(right, model)
    p, weight = right.item(), 0.0
    for k in range(G + 1):
        good, bad = PAPERS[PRESETS[preset].get("advantage", "group")](k / G)
        weight += comb(G, k) * p**k * (1 - p) ** (G - k) * (k * good / p - (G - k) * bad / (1 - p)) / G
    scale = 1.0 if preset in WHOLE else 0.5
    torch.testing.assert_close(expected, -scale * weight * climbed, rtol=1e-6, atol=1e-12)


def test_rloo_is_unbiased_and_maxrl_climbs_the_likelihood() -> None:
    """Of G samples: RLOO's weight of the gradient of p is 1, MaxRL's (1 - (1 - p)^(G - 1)) / p, on its way to 1 / p."""
    model = draw_model()
    share = score(model).sum(-1).exp()
    right = (share * torch.tensor(RIGHT)).sum()
    (climbed,) = torch.autograd.grad(right, model)
    p = right.item()
    for preset, weight in (("rloo", 1.0), ("maxrl", 0.5 * (1 - (1 - p) ** (G - 1)) / p)):
        expected = torch.zeros_like(model)
        for drawn in product(range(len(ANSWERS)), repeat=G):
            expected += share[list(drawn)].prod().detach() * policy_gradient(preset, model, drawn)
        torch.testing.assert_close(expected, -weight * climbed, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k3_plus"])
def test_what_a_kl_pulls_to(kind: str) -> None:
    """As a loss over answers of one token: k2 and k3_plus have the gradient of KL(policy, reference), k3 that of
    KL(reference, policy), k1 none. Of the values all but k2's are unbiased."""
    from learner.objective.kl import KL

    model = torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    logp = model.log_softmax(-1)
    ref = torch.tensor([-0.5, 0.4, 0.1, 0.2], dtype=torch.float64).log_softmax(-1)
    share = logp.detach().exp()
    forward, backward = (logp.exp() * (logp - ref)).sum(), (ref.exp() * (ref - logp)).sum()
    value = (share * KL[kind](logp, ref)).sum()
    if kind != "k2":
        assert value.item() == pytest.approx(forward.item())
    (found,) = torch.autograd.grad(value, model, retain_graph=True)
    climbed = {"k1": None, "k2": forward, "k3": backward, "k3_plus": forward}[kind]
    wanted = torch.zeros_like(model) if climbed is None else torch.autograd.grad(climbed, model)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
