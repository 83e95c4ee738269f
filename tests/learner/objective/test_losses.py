"""The objective against formulas written out by hand, and law 7: in float32, as production computes it.

Reference values are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config.schema import RewardConfig
from common.errors import RewardError
from common.types import ScoredGroup
from learner.model.pack import build_pack
from learner.model.rows import build_rows
from learner.objective.advantages import COMPARISONS, SUMMED, StepRewards, advantages, is_zero_std, step_advantages
from learner.objective.kl import k3
from learner.objective.losses import LOSSES
from learner.objective.records import LossInputs, StepCounts
from learner.trainer.schedule import learning_rate
from tests.helpers import tiny
from tests.helpers.losses import make_inputs


def group_advantages(group: ScoredGroup, reward: RewardConfig = SUMMED) -> Tensor:
    """Those of a step of one group."""
    return step_advantages([group], "group", reward)[0]


def by_formula(rewards: Sequence[float]) -> npt.NDArray[np.float64]:
    """(reward - mean) / (std + 1e-4) in float64."""
    values = np.array(rewards)
    wanted: npt.NDArray[np.float64] = (values - values.mean()) / (values.std(ddof=1) + 1e-4)
    return wanted


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
    np.testing.assert_allclose(advantages(torch.tensor(rewards)), wanted, rtol=1e-6)


REWARDS = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None)
@given(st.lists(REWARDS, min_size=2, max_size=64).filter(lambda rewards: max(rewards) - min(rewards) > 1e-30))
def test_advantages_of_any_rewards(rewards: list[float]) -> None:
    spread = float(np.std(rewards, ddof=1)) + 1e-4
    rounding = 1e-6 * max(map(abs, rewards)) / spread + 1e-6
    found = advantages(torch.tensor(rewards))
    assert found.dtype == torch.float32 and found.any()
    np.testing.assert_allclose(found, by_formula(rewards), rtol=1e-5, atol=rounding)


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


NUMBERS = st.lists(st.integers(-3, 3), min_size=4, max_size=4)


@settings(deadline=None)
@given(NUMBERS, NUMBERS, st.sampled_from([1e3, 1e4]))
def test_the_unit_of_a_function_does_not_matter_where_each_is_normalised(
    one: list[int], other: list[int], scale: float
) -> None:
    large = [value * 1e3 for value in one]
    found = group_advantages(scored(large, other), SEPARATE)
    np.testing.assert_allclose(
        found, group_advantages(scored([value * scale for value in large], other), SEPARATE), atol=1e-4
    )
    assert abs(float(found.sum())) < 1e-4
    assert not group_advantages(replace(scored(one, other), rewards_by_name={}), SEPARATE).any()


@settings(deadline=None)
@given(
    size=st.integers(1, 64),
    values=st.tuples(REWARDS, REWARDS),
    weights=st.tuples(REWARDS, REWARDS),
    normalise=st.sampled_from(["sum", "each"]),
)
def test_law_7_equal_rewards_have_no_advantage(
    size: int, values: tuple[float, float], weights: tuple[float, float], normalise: Literal["sum", "each"]
) -> None:
    """Exactly none, whatever the size, the values and the weights; and the step record counts the group as zero-std."""
    config = RewardConfig(functions=dict(zip(("one", "two"), weights, strict=True)), normalise=normalise)
    total = sum(weight * value for weight, value in zip(weights, values, strict=True))  # as the reward pool adds it
    bare = tiny.group(0, text=2, pictures=[], lengths=[1] * size, rewards=[total] * size)
    flat = replace(bare, rewards_by_name={"one": (values[0],) * size, "two": (values[1],) * size})
    assert not group_advantages(flat, config).any()
    assert is_zero_std(flat, config) == (size > 1)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.1 + 0.2, 0.3, 1.2]), min_size=2, max_size=16))
def test_a_group_is_zero_std_where_its_advantages_are_zero(rewards: list[float]) -> None:
    """Both see float32: there 0.1 + 0.2 is 0.3."""
    group = tiny.group(0, text=2, pictures=[], lengths=[1] * len(rewards), rewards=rewards)
    assert is_zero_std(group) == (not group_advantages(group).any()) == (len({np.float32(r) for r in rewards}) == 1)


def test_a_function_of_weight_zero_teaches_nothing() -> None:
    group = replace(scored([1, 0], [1, 1]), rewards=(0.5, 0.5))
    config = RewardConfig(functions={"accuracy": 0.0, "format": 0.5}, normalise="each")
    assert is_zero_std(group, config) and not group_advantages(group, config).any()
    assert not is_zero_std(group, SEPARATE)


def test_law_3_advantages_are_a_groups_own_however_it_is_packed() -> None:
    groups = [scored([1, 0, 0, 1], [1, 1, 0, 1]), scored([0, 0, 1], [0.25, 1, 0]), scored([1, 1], [1, 1])]
    model = tiny.model()
    compared = [own.tolist() for own in step_advantages(groups, "group", SEPARATE)]
    parts = (slice(0, 3), slice(0, 1), slice(1, 3))
    for build in (build_pack, build_rows):
        packs = [build(groups[own], model, banned=(), advantages=compared[own]) for own in parts]
        assert torch.equal(packs[0].advantage, torch.cat([packs[1].advantage, packs[2].advantage]))
        assert torch.equal(packs[0].advantage, torch.cat([group_advantages(g, SEPARATE) for g in groups]))


@pytest.mark.parametrize(("policy", "reference"), [(-1.0, -1.0), (-1.0, -2.0), (-3.0, -0.5), (-0.1, -9.0)])
def test_k3_is_never_negative_and_zero_only_where_equal(policy: float, reference: float) -> None:
    found = k3(torch.tensor([policy]), torch.tensor([reference]))
    np.testing.assert_allclose(found, [np.exp(reference - policy) - (reference - policy) - 1], rtol=1e-6)
    assert (found > 0) == (policy != reference)


@settings(deadline=None)
@given(st.floats(-20, 0, width=32), st.floats(-(2.0**-7), 2.0**-7, width=32))
def test_k3_of_neighbours_is_off_by_rounding_alone(policy: float, apart: float) -> None:
    logp, reference = torch.tensor([policy]), torch.tensor([policy]) + apart
    gap = float(reference.double() - logp.double())
    np.testing.assert_allclose(k3(logp, reference), [np.expm1(gap) - gap], rtol=0, atol=2e-7)


def test_loss_and_gradient_by_hand() -> None:
    lengths, advantage, beta = [3, 1, 2], [1.5, -0.5, 0.25], 0.1
    policy, reference = np.linspace(-3, -0.5, 6), np.linspace(-2, -1, 6)
    row = np.repeat([0, 1, 2], lengths)
    drift = reference - policy
    weight = 1 / np.array(lengths)[row] / 3
    wanted = float((weight * (-np.array(advantage)[row] + beta * (np.exp(drift) - drift - 1))).sum())
    wanted_gradient = weight * (-np.array(advantage)[row] + beta * (1 - np.exp(drift)))

    logp = torch.tensor(policy, dtype=torch.float32, requires_grad=True)
    ref_logp = torch.tensor(reference, dtype=torch.float32)
    found = LOSSES["grpo"](make_inputs(logp, ref_logp=ref_logp, row=row.tolist(), advantage=advantage, beta=beta))
    torch.autograd.backward(found.loss)
    np.testing.assert_allclose(found.loss.item(), wanted, rtol=1e-6)
    assert logp.grad is not None
    np.testing.assert_allclose(logp.grad, wanted_gradient, rtol=1e-5)
    np.testing.assert_allclose(found.kl, (weight * (np.exp(drift) - drift - 1)).sum(), rtol=1e-5)
    assert not found.kl.requires_grad


EXACT = [name for name in LOSSES if name.startswith("exact_")]
LIST = {"logp": [-0.5, -1.0, -0.7, -2.5, -0.9, -0.1, -1.1], "ref": [-0.6, -0.8, -0.9, -2.0, -1.2, -0.3, -0.9]}
ROWS, OWN, REWARD = [0, 0, 1, 2, 3, 3, 4], [0, 0, 0, 1, 1], [1.0, 0.0, 0.25, 0.0, 2.0]


def listed(logp: Tensor, *, reward: list[float] = REWARD, beta: float = 0.3, reference: bool = True) -> LossInputs:
    """Two groups, of three and two sequences of one or two tokens."""
    ref = torch.tensor(LIST["ref"]) if reference else None
    return make_inputs(logp, ref_logp=ref, row=ROWS, advantage=reward, beta=beta, group=OWN)


def leaf() -> Tensor:
    return torch.tensor(LIST["logp"], requires_grad=True)


def worth_by_hand(name: str, share: dict[int, float], own: list[int]) -> dict[int, float]:
    """What the probability of each answer of a list is worth: what is not listed is as bad as the worst that is."""
    shares = [*(share[one] for one in own), 1 - sum(share[one] for one in own)]
    rewards = np.array([*(REWARD[one] for one in own), min(REWARD[one] for one in own)])
    mean, least = np.average(rewards, weights=shares), rewards.min()
    std = np.sqrt(np.average((rewards - mean) ** 2, weights=shares))
    scale = {"exact_raw": 1.0, "exact_arcsine": std + 1e-4, "exact_log": mean - least}[name]
    return {one: (REWARD[one] - (0 if name == "exact_raw" else least)) / scale for one in own}


@pytest.mark.parametrize("name", EXACT)
def test_exact_losses_by_hand(name: str) -> None:
    """The gradient tells: the scale of the rewards is not differentiated."""
    logp = leaf()
    found = LOSSES[name](listed(logp))
    torch.autograd.backward(found.loss)
    own = {row: [t for t, at in enumerate(ROWS) if at == row] for row in range(5)}
    lp = {row: sum(LIST["logp"][t] for t in tokens) for row, tokens in own.items()}
    ref = {row: sum(LIST["ref"][t] for t in tokens) for row, tokens in own.items()}
    share = {row: float(np.exp(value)) for row, value in lp.items()}
    worth = worth_by_hand(name, share, [0, 1, 2]) | worth_by_hand(name, share, [3, 4])
    kl = sum(share[row] * (lp[row] - ref[row]) - share[row] + np.exp(ref[row]) for row in own) / 2
    assert found.kl.item() == pytest.approx(kl)
    if name != "exact_log":
        assert found.loss.item() == pytest.approx(0.3 * kl - sum(share[row] * worth[row] for row in own) / 2)
    wanted = [share[row] * (0.3 * (lp[row] - ref[row]) - worth[row]) / 2 for row in ROWS]
    assert logp.grad is not None
    np.testing.assert_allclose(logp.grad, wanted, rtol=1e-5)


@settings(deadline=None)
@given(st.floats(-100, 100, width=32))
def test_a_constant_added_to_all_rewards_teaches_nothing_but_under_raw(constant: float) -> None:
    for name in ("exact_arcsine", "exact_log"):
        gradients = []
        for more in (0.0, constant):
            logp = leaf()
            torch.autograd.backward(LOSSES[name](listed(logp, reward=[one + more for one in REWARD])).loss)
            gradients.append(logp.grad)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)  # 100.25 is off by 4e-6 in float32


def test_the_worked_example_of_the_exact_losses() -> None:
    """As their docstrings have it: "cat" and "dog", of one token each, and 0.2 for all else."""
    wanted = {"exact_raw": [-0.5, 0.0], "exact_arcsine": [-1.0, 0.0], "exact_log": [-1.0, 0.0]}
    for name, gradient in wanted.items():
        logp = torch.tensor([0.5, 0.3]).log().requires_grad_()
        record = make_inputs(logp, row=[0, 1], advantage=[0.0, 0.0], reward=[1.0, 0.0])
        torch.autograd.backward(LOSSES[name](record).loss)
        assert logp.grad is not None
        np.testing.assert_allclose(logp.grad, gradient, atol=2e-4)


def test_the_exact_kl_is_never_negative_and_finite_where_the_policy_gave_an_answer_up() -> None:
    for policy, reference in ((-0.5, -0.5), (-0.1, -4.0), (-4.0, -0.1), (-500.0, -0.1), (-0.1, -500.0)):
        logp = torch.tensor([policy], requires_grad=True)
        record = make_inputs(logp, ref_logp=torch.tensor([reference]), row=[0], advantage=[0.0], beta=1.0)
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
    logp, reference = -torch.rand(7), -torch.rand(7)
    row, group, advantage = [0, 0, 1, 1, 1, 1, 2], [0, 0, 1], [0.5, -1.0, 0.25]
    whole = LOSSES[name](make_inputs(logp, ref_logp=reference, row=row, advantage=advantage, beta=0.3, group=group))
    step: dict[str, Any] = {"beta": 0.3, "step": StepCounts(sequences=3, groups=2, tokens=7)}
    first = LOSSES[name](
        make_inputs(logp[:6], ref_logp=reference[:6], row=row[:6], advantage=advantage[:2], group=group[:2], **step)
    )
    second = LOSSES[name](make_inputs(logp[6:], ref_logp=reference[6:], row=[0], advantage=advantage[2:], **step))
    torch.testing.assert_close(first.loss + second.loss, whole.loss)
    torch.testing.assert_close(first.kl + second.kl, whole.kl)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])  # which follows no reward
@settings(deadline=None)
@given(
    logp=st.lists(st.floats(-50, 0, width=32), min_size=2, max_size=32),
    value=REWARDS,
    reference=st.booleans(),
)
def test_law_7_equal_rewards_and_no_kl_weight_give_zero_gradient(
    name: str, logp: list[float], value: float, reference: bool
) -> None:
    """Exactly zero in float32; `exact_raw` compares nothing, so its rewards are 0."""
    policy = torch.tensor(logp, requires_grad=True)
    ref_logp = policy.detach() - 3 if reference else None
    size = len(logp) - 1  # the first row has two tokens
    record = make_inputs(
        policy,
        ref_logp=ref_logp,
        row=[0, *range(size)],
        advantage=advantages(torch.tensor([value] * size)),
        reward=[0.0 if name == "exact_raw" else value] * size,
    )
    torch.autograd.backward(LOSSES[name](record).loss)
    assert policy.grad is not None
    assert not policy.grad.any()


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


@pytest.mark.parametrize("how", COMPARISONS)
@pytest.mark.parametrize(("base", "spread"), [(0.0, 1e21), (1e8, 16.0), (0.0, 1e-6)])
def test_rewards_of_any_size_are_compared_as_in_float64(how: str, base: float, spread: float) -> None:
    """The squares of 1e21 are infinite in float32, and the mean of rewards around 1e8 is off by 4 there."""
    rewards = [torch.tensor([base + spread * one for one in own]) for own in ([1, 0, 0], [0, 1, 1, 0, 0], [1, 1])]
    lengths = [torch.arange(1, len(own) + 1) for own in rewards]
    found = COMPARISONS[how](StepRewards(rewards=rewards, lengths=lengths))
    wide = COMPARISONS[how](StepRewards(rewards=[own.double() for own in rewards], lengths=lengths))
    for own, wanted in zip(found, wide, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, wanted.float(), rtol=1e-5, atol=1e-30)
    assert any(own.any() for own in found)


@pytest.mark.parametrize("normalise", ["sum", "each"])
def test_a_reward_below_0_is_no_share_of_a_mean(normalise: Literal["sum", "each"]) -> None:
    """Of rewards -1 and -3 the better one would be pushed down: (-1 - -2) / -2. Other comparisons take them."""
    config = RewardConfig(functions={"accuracy": 2.0, "format": 0.5}, normalise=normalise)
    sound, below = scored([1, 0, 0, 1], [1, 1, 0, 1]), scored([-1, -3, -1, -1], [1, 1, 1, 1])
    assert step_advantages([sound], "mean", config)[0].any()
    with pytest.raises(
        RewardError, match=rf"objective\.advantage = mean .*\n.*the group of {below.prompt.id}, whose mean"
    ):
        step_advantages([sound, below], "mean", config)
    for how in COMPARISONS.keys() - {"mean"}:
        assert step_advantages([sound, below], how, config)[1].isfinite().all()
