"""The exact losses against the sum over every answer that a small model can give, listed or not.

The model has 3 tokens and an end of turn, and answers of up to 3 tokens before it: 40 that end and 81 that are cut.
The oracle is the definition: the sum over all answers y of pi(y) A(y) grad log pi(y). No formula of ours is in it.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from learner.objective.losses import LOSSES
from tests.helpers.losses import make_inputs

TOKENS, LONGEST, END = 3, 3, 3
SAID = [said for length in range(LONGEST + 1) for said in product(range(TOKENS), repeat=length)]
ENDED = [(*said, END) for said in SAID]
CUT = [(*said, token) for said in SAID if len(said) == LONGEST for token in range(TOKENS)]  # before their end
ALL = [*ENDED, *CUT]
LISTED = [(0, END), (1, 2, END), (2, 2, 0, END), (1, END)]


def make_model(seed: int) -> Tensor:
    """Logits of the next token after each beginning: (beginnings, 4), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((TOKENS + 1) ** (LONGEST + 1), 4, generator=generator, dtype=torch.float64)


def token_logps(model: Tensor, answer: tuple[int, ...]) -> Tensor:
    """(C,) log-probs of an answer's tokens."""
    at, found = 0, []
    for token in answer:
        found.append(model[at].log_softmax(-1)[token])
        at = at * (TOKENS + 1) + token + 1
    return torch.stack(found)


def advantage(name: str, reward: Tensor, share: Tensor) -> Tensor:
    """What each answer is worth, from rewards and probabilities of all answers."""
    mean = (share * reward).sum()
    if name == "exact_raw":
        return reward
    if name == "exact_arcsine":
        return (reward - mean) / ((share * (reward - mean) ** 2).sum().sqrt() + 1e-4)
    return (reward - mean) / (mean - reward.min())


def test_all_answers_are_there() -> None:
    model = make_model(0)
    assert sum(token_logps(model, answer).sum().exp().item() for answer in ALL) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rewards", [(1.0, 0.0, 0.0, 0.0), (0.2, 1.0, 0.0, 0.5), (1.0, 1.0, 0.25, 0.0)])
@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("exact_")])
def test_the_gradient_is_that_over_all_answers(name: str, rewards: tuple[float, ...], seed: int) -> None:
    model = make_model(seed).requires_grad_()
    earned = dict(zip(LISTED, rewards, strict=True))
    reward = torch.tensor([earned.get(answer, 0.0) for answer in ALL], dtype=torch.float64)
    logps = torch.stack([token_logps(model, answer).sum() for answer in ALL])
    share = logps.detach().exp()
    surrogate = -(share * advantage(name, reward, share) * logps).sum()
    (wanted,) = torch.autograd.grad(surrogate, model)

    tokens = [token_logps(model, answer) for answer in LISTED]
    flat = torch.cat(tokens)
    inputs = make_inputs(
        flat,
        row=[row for row, own in enumerate(tokens) for _ in own],
        reward=torch.tensor(rewards, dtype=torch.float64),
        advantage=torch.zeros(len(LISTED), dtype=torch.float64),
    )
    (found,) = torch.autograd.grad(LOSSES[name](inputs).loss, model)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert (found.norm() / wanted.norm()).item() == pytest.approx(1)
