"""The objective against formulas written out by hand, and law 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config.schema import RewardConfig
from common.types import ScoredGroup
from learner.model.pack import build_pack
from learner.model.rows import build_rows
from learner.objective import LOSSES, LossInputs, advantages, group_advantages, grpo_loss, kl_k3
from learner.trainer.schedule import learning_rate
from tests.helpers import tiny


def inputs(
    logp: Tensor,
    *,
    ref_logp: Tensor | None,
    row: list[int],
    advantage: list[float],
    beta: float,
    sequences: int | None = None,
    group: list[int] | None = None,
    reward: list[float] | None = None,
    groups: int = 1,
) -> LossInputs:
    return LossInputs(
        logp=logp,
        ref_logp=ref_logp,
        engine_logp=logp.detach(),
        row=torch.tensor(row),
        group=torch.tensor(group or [0] * len(advantage)),
        reward=torch.tensor(reward or advantage, dtype=logp.dtype),
        advantage=torch.tensor(advantage),
        sequences=sequences or len(advantage),
        groups=groups,
        beta=beta,
    )


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ([1.0, 0.0], [0.5 / (np.sqrt(0.5) + 1e-4), -0.5 / (np.sqrt(0.5) + 1e-4)]),
        ([1.0, 0.0, 0.0, 0.0], [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]),
        ([0.3, 0.3, 0.3], [0.0, 0.0, 0.0]),
        ([0.3], [0.0]),
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


LIST = {"logp": [-0.5, -1.0, -0.7, -2.5, -0.9, -0.1, -1.1], "ref": [-0.6, -0.8, -0.9, -2.0, -1.2, -0.3, -0.9]}
ROWS, OWN, REWARD = [0, 0, 1, 2, 3, 3, 4], [0, 0, 0, 1, 1], [1.0, 0.0, 0.25, 0.0, 2.0]


def listed(logp: Tensor, *, reward: list[float] = REWARD, beta: float = 0.3, reference: bool = True) -> LossInputs:
    """Two groups, of three and two sequences of one or two tokens."""
    ref = torch.tensor(LIST["ref"], dtype=torch.float64) if reference else None
    return inputs(logp, ref_logp=ref, row=ROWS, advantage=reward, beta=beta, group=OWN, reward=reward, groups=2)


def leaf() -> Tensor:
    return torch.tensor(LIST["logp"], dtype=torch.float64, requires_grad=True)


def worth_by_hand(share: dict[int, float], own: list[int]) -> dict[int, float]:
    """Rewards of a list and of all else, less their mean over their deviation: what is not listed is one more answer,
    as bad as the worst that is."""
    shares = [*(share[one] for one in own), 1 - sum(share[one] for one in own)]
    rewards = np.array([*(REWARD[one] for one in own), min(REWARD[one] for one in own)])
    mean = np.average(rewards, weights=shares)
    std = np.sqrt(np.average((rewards - mean) ** 2, weights=shares))
    return {one: (REWARD[one] - mean) / (std + 1e-4) for one in own}


@pytest.mark.parametrize("name", ["exact_raw", "exact_normalised"])
def test_exact_losses_by_hand(name: str) -> None:
    """Of the normalised one the gradient tells: mean and deviation are not differentiated."""
    logp = leaf()
    found = LOSSES[name](listed(logp))
    torch.autograd.backward(found.loss)
    own = {row: [t for t, at in enumerate(ROWS) if at == row] for row in range(5)}
    lp = {row: sum(LIST["logp"][t] for t in tokens) for row, tokens in own.items()}
    ref = {row: sum(LIST["ref"][t] for t in tokens) for row, tokens in own.items()}
    share = {row: float(np.exp(value)) for row, value in lp.items()}
    worth = dict(enumerate(REWARD))
    if name == "exact_normalised":
        worth = worth_by_hand(share, [0, 1, 2]) | worth_by_hand(share, [3, 4])
    kl = sum(share[row] * (lp[row] - ref[row]) - share[row] + np.exp(ref[row]) for row in own) / 2
    assert found.kl.item() == pytest.approx(kl)
    assert found.loss.item() == pytest.approx(0.3 * kl - sum(share[row] * worth[row] for row in own) / 2)
    slope = [share[row] * (0.3 * (lp[row] - ref[row]) - worth[row]) / 2 for row in ROWS]
    assert logp.grad is not None
    np.testing.assert_allclose(logp.grad, slope, rtol=1e-9)


def test_a_constant_added_to_all_rewards_teaches_nothing_where_they_are_normalised() -> None:
    slopes = []
    for more in (0.0, -7.0):
        logp = leaf()
        torch.autograd.backward(LOSSES["exact_normalised"](listed(logp, reward=[one + more for one in REWARD])).loss)
        slopes.append(logp.grad)
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=0)


def test_the_exact_kl_is_never_negative_and_finite_where_the_policy_gave_an_answer_up() -> None:
    for policy, reference in ((-0.5, -0.5), (-0.1, -4.0), (-4.0, -0.1), (-500.0, -0.1), (-0.1, -500.0)):
        logp = torch.tensor([policy], requires_grad=True)
        record = inputs(logp, ref_logp=torch.tensor([reference]), row=[0], advantage=[0.0], beta=1.0)
        found = LOSSES["exact_raw"](record)
        torch.autograd.backward(found.loss)
        assert torch.isfinite(found.kl) and logp.grad is not None and torch.isfinite(logp.grad).all()
        assert (found.kl > 0) == (policy != reference)
        assert bool(logp.grad) == (policy != reference and policy > -100)


def test_sft_is_the_mean_of_the_sequences_means() -> None:
    logp = leaf()
    torch.autograd.backward(LOSSES["sft"](listed(logp)).loss)
    assert logp.grad is not None
    np.testing.assert_allclose(logp.grad, [-1 / ROWS.count(row) / 5 for row in ROWS])


@pytest.mark.parametrize("name", LOSSES)
def test_shares_of_packs_add_up(name: str) -> None:
    """A pack holds whole groups."""
    logp, reference = -torch.rand(7, dtype=torch.float64), -torch.rand(7, dtype=torch.float64)
    row, group, advantage = [0, 0, 1, 1, 1, 1, 2], [0, 0, 1], [0.5, -1.0, 0.25]
    whole = LOSSES[name](
        inputs(logp, ref_logp=reference, row=row, advantage=advantage, beta=0.3, group=group, groups=2)
    )
    step: dict[str, Any] = {"beta": 0.3, "sequences": 3, "groups": 2}
    first = LOSSES[name](
        inputs(logp[:6], ref_logp=reference[:6], row=row[:6], advantage=advantage[:2], group=group[:2], **step)
    )
    second = LOSSES[name](inputs(logp[6:], ref_logp=reference[6:], row=[0], advantage=advantage[2:], **step))
    torch.testing.assert_close(first.loss + second.loss, whole.loss)
    torch.testing.assert_close(first.kl + second.kl, whole.kl)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])  # which follows no reward
@pytest.mark.parametrize("reference", [None, torch.tensor([-9.0, -0.1, -2.0])])
def test_zero_advantage_and_zero_kl_weight_give_zero_gradient(name: str, reference: Tensor | None) -> None:
    logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    alike = [0.7, 0.7] if name == "exact_normalised" else [0.0, 0.0]
    record = inputs(logp, ref_logp=reference, row=[0, 0, 1], advantage=[0.0, 0.0], beta=0.0, reward=alike)
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
