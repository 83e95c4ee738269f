"""The objective against formulas written out by hand, and law 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config import RewardConfig
from common.types import ScoredGroup
from learner.naive import build_rows
from learner.objective import LOSSES, LossInputs, advantages, group_advantages, grpo_loss, kl_k3
from learner.pack import build_pack
from learner.schedule import learning_rate
from tests.learner import tiny


def inputs(
    logp: Tensor,
    *,
    ref_logp: Tensor | None,
    row: list[int],
    advantage: list[float],
    beta: float,
    sequences: int | None = None,
) -> LossInputs:
    return LossInputs(
        logp=logp,
        ref_logp=ref_logp,
        engine_logp=logp.detach(),
        row=torch.tensor(row),
        advantage=torch.tensor(advantage),
        sequences=sequences or len(advantage),
        beta=beta,
    )


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ([1.0, 0.0], [0.5 / (np.sqrt(0.5) + 1e-4), -0.5 / (np.sqrt(0.5) + 1e-4)]),
        ([1.0, 0.0, 0.0, 0.0], [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]),
        ([0.3, 0.3, 0.3], [0.0, 0.0, 0.0]),
        ([0.0, 1e-6], [-5e-7 / (np.sqrt(0.5) * 1e-6 + 1e-4), 5e-7 / (np.sqrt(0.5) * 1e-6 + 1e-4)]),
    ],
)
def test_advantages(rewards: list[float], wanted: list[float]) -> None:
    np.testing.assert_allclose(advantages(torch.tensor(rewards, dtype=torch.float64)), wanted, rtol=1e-12)


SEPARATE = RewardConfig(functions={"accuracy": 2.0, "format": 0.5}, normalise="each")


def scored(accuracy: Sequence[float], form: Sequence[float]) -> ScoredGroup:
    """As the reward pool makes it with the weights of SEPARATE."""
    total = [2.0 * a + 0.5 * f for a, f in zip(accuracy, form, strict=True)]
    bare = tiny.group(0, text=2, pictures=[], lengths=[1] * len(total), rewards=total)
    return replace(bare, rewards_by_name={"accuracy": tuple(accuracy), "format": tuple(form)})


def test_each_function_against_its_own_spread() -> None:
    """By hand: four completions, one right, and one malformed; and alike under `sum`, where the weights decide."""
    group = scored([1, 0, 0, 0], [1, 1, 0, 1])
    low, high = -0.25 / 0.5001, 0.75 / 0.5001
    wanted = [2 * high - 0.5 * low, 2 * low - 0.5 * low, 2 * low - 0.5 * high, 2 * low - 0.5 * low]
    np.testing.assert_allclose(group_advantages(group, SEPARATE), wanted, rtol=1e-5)
    summed = advantages(torch.tensor(group.rewards))
    assert torch.equal(group_advantages(group), summed)
    assert not np.allclose(group_advantages(group, SEPARATE), summed, atol=0.1)


numbers = st.lists(st.integers(-3, 3), min_size=4, max_size=4)


@settings(deadline=None)
@given(numbers, numbers, st.sampled_from([1e3, 1e4]))
def test_the_unit_of_a_function_does_not_matter_where_each_is_normalised(
    one: list[int], other: list[int], scale: float
) -> None:
    """Law 7 with it: what is equal for all of a group is no advantage."""
    large = [value * 1e3 for value in one]
    found = group_advantages(scored(large, other), SEPARATE)
    np.testing.assert_allclose(
        found, group_advantages(scored([value * scale for value in large], other), SEPARATE), atol=1e-4
    )
    assert abs(float(found.sum())) < 1e-4
    assert not group_advantages(scored([0.3] * 4, [0.1] * 4), SEPARATE).any()
    assert not group_advantages(replace(scored(one, other), rewards_by_name={}), SEPARATE).any()


def test_law_3_advantages_are_a_groups_own_however_it_is_packed() -> None:
    groups = [scored([1, 0, 0, 1], [1, 1, 0, 1]), scored([0, 0, 1], [0.25, 1, 0]), scored([1, 1], [1, 1])]
    model = tiny.model()
    for build in (build_pack, build_rows):
        packs = [build(own, model, banned=(), reward=SEPARATE) for own in (groups, groups[:1], groups[1:])]
        assert torch.equal(packs[0].advantage, torch.cat([packs[1].advantage, packs[2].advantage]))
        assert torch.equal(packs[0].advantage, torch.cat([group_advantages(g, SEPARATE) for g in groups]))


@pytest.mark.parametrize(("policy", "reference"), [(-1.0, -1.0), (-1.0, -2.0), (-3.0, -0.5), (-0.1, -9.0)])
def test_k3_is_never_negative_and_zero_only_where_equal(policy: float, reference: float) -> None:
    found = kl_k3(torch.tensor([policy], dtype=torch.float64), torch.tensor([reference], dtype=torch.float64))
    np.testing.assert_allclose(found, [np.exp(reference - policy) - (reference - policy) - 1], rtol=1e-12)
    assert (found > 0) == (policy != reference)


def test_loss_and_gradient_by_hand() -> None:
    lengths, advantage, beta = [3, 1, 2], [1.5, -0.5, 0.25], 0.1
    policy, reference = np.linspace(-3, -0.5, 6), np.linspace(-2, -1, 6)
    row = np.repeat([0, 1, 2], lengths)
    drift = reference - policy
    weight = 1 / np.array(lengths)[row] / 3
    wanted = float((weight * (-np.array(advantage)[row] + beta * (np.exp(drift) - drift - 1))).sum())
    wanted_gradient = weight * (-np.array(advantage)[row] + beta * (1 - np.exp(drift)))

    logp = torch.tensor(policy, requires_grad=True)
    found = grpo_loss(inputs(logp, ref_logp=torch.tensor(reference), row=row.tolist(), advantage=advantage, beta=beta))
    torch.autograd.backward(found.loss)
    np.testing.assert_allclose(found.loss.item(), wanted, rtol=1e-6)
    assert logp.grad is not None
    np.testing.assert_allclose(logp.grad, wanted_gradient, rtol=1e-6)
    np.testing.assert_allclose(found.kl, (weight * (np.exp(drift) - drift - 1)).sum(), rtol=1e-6)
    assert not found.kl.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_shares_of_packs_add_up(name: str) -> None:
    logp, reference = -torch.rand(7, dtype=torch.float64), -torch.rand(7, dtype=torch.float64)
    advantage = [0.5, -1.0, 0.25]
    whole = LOSSES[name](inputs(logp, ref_logp=reference, row=[0, 0, 1, 1, 1, 1, 2], advantage=advantage, beta=0.3))
    first = LOSSES[name](
        inputs(logp[:6], ref_logp=reference[:6], row=[0, 0, 1, 1, 1, 1], advantage=advantage[:2], beta=0.3, sequences=3)
    )
    second = LOSSES[name](
        inputs(logp[6:], ref_logp=reference[6:], row=[0], advantage=advantage[2:], beta=0.3, sequences=3)
    )
    torch.testing.assert_close(first.loss + second.loss, whole.loss)
    torch.testing.assert_close(first.kl + second.kl, whole.kl)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reference", [None, torch.tensor([-9.0, -0.1, -2.0])])
def test_zero_advantage_and_zero_kl_weight_give_zero_gradient(name: str, reference: Tensor | None) -> None:
    logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    record = inputs(logp, ref_logp=reference, row=[0, 0, 1], advantage=[0.0, 0.0], beta=0.0)
    torch.autograd.backward(LOSSES[name](record).loss)
    assert logp.grad is not None
    assert not logp.grad.any()


@pytest.mark.parametrize(
    ("schedule", "warmup", "wanted"),
    [
        ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
        ("cosine", 0, [1.0, (1 + np.sqrt(0.5)) / 2, 0.5, (1 - np.sqrt(0.5)) / 2]),
        ("linear", 2, [1 / 3, 2 / 3, 1.0, 0.5]),
        ("constant", 3, [0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_learning_rate(schedule: str, warmup: int, wanted: list[float]) -> None:
    rates = [
        learning_rate(step, peak=2e-3, steps=4, warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]
        for step in range(4)
    ]
    np.testing.assert_allclose(rates, 2e-3 * np.array(wanted))
