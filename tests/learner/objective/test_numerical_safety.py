"""Giant ratios, rewards that are all equal, and masked tokens: every loss stays a number, and law 7 holds exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.config.objective import ObjectiveConfig
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.pack import build_pack
from learner.objective.advantages import COMPARISONS, StepRewards
from learner.objective.kl import KL
from learner.objective.losses import LOSSES
from learner.objective.ratios import SURROGATES
from learner.objective.records import Coefficients, LossInputs
from tests.helpers import tiny
from tests.learner.objective.test_corrections import CORRECTIONS
from tests.learner.objective.test_reference_values import case

FAR = (-500.0, 60.0, 500.0)  # of a log-ratio
CORRECTED: list[dict[str, Any]] = [{}, *CORRECTIONS]


def far_off(inputs: LossInputs, field: str, shift: float) -> LossInputs:
    """Shift one token of `logp`, `old_logp`, `engine_logp` or `ref_logp` by so many nats."""
    own = getattr(inputs, field)
    shifted = (inputs.logp if own is None else own).detach().clone()
    shifted[2] += shift
    changed: dict[str, Any] = {field: shifted}
    return replace(inputs, **changed)


def gradient_of(inputs: LossInputs, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and gradient of a record whose `logp` is made a leaf of its own."""
    logp = inputs.logp.detach().clone().requires_grad_()
    loss = LOSSES[name](replace(inputs, logp=logp)).loss
    torch.autograd.backward(loss)
    assert logp.grad is not None
    return loss.detach(), logp.grad


@pytest.mark.parametrize("shift", FAR)
@pytest.mark.parametrize("field", ["old_logp", "engine_logp", "ref_logp"])
@pytest.mark.parametrize("name", SURROGATES)
def test_one_giant_ratio_leaves_loss_and_gradient_finite(name: str, field: str, shift: float) -> None:
    """Of every surrogate under every correction and KL, weighted or not."""
    kinds = [{"kl": kl, "kl_corrected": weighted} for kl in KL for weighted in (False, True)]
    for own in (*CORRECTED, *kinds, {"dual_clip": 3.0}):
        inputs = far_off(case(torch.float32, {"loss": name} | own), field, shift)
        reference = inputs.logp.detach() - 0.1 if inputs.ref_logp is None else inputs.ref_logp
        inputs = replace(inputs, ref_logp=reference, coefficients=Coefficients(beta=0.04))
        loss, gradient = gradient_of(inputs, name)
        assert torch.isfinite(loss), own
        assert torch.isfinite(gradient).all(), own


@pytest.mark.parametrize("shift", FAR)
@pytest.mark.parametrize("field", ["old_logp", "engine_logp", "ref_logp"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])
def test_law_7_off_policy_without_advantage_and_kl_weight_there_is_no_gradient(
    name: str, field: str, shift: float
) -> None:
    """Exactly none, in float32, which log-probs have at any dtype of the model."""
    for own in CORRECTED:
        changes = own | ({"loss": name} if name in SURROGATES else {})
        inputs = far_off(case(torch.float32, changes), field, shift)
        none = torch.zeros_like(inputs.advantage)
        inputs = replace(inputs, advantage=none, reward=none, coefficients=Coefficients(beta=0.0))
        assert not gradient_of(inputs, name)[1].any(), own


@pytest.mark.parametrize("shift", FAR)
@pytest.mark.parametrize("name", SURROGATES)
def test_law_7_masked_tokens_cannot_matter_however_far_they_went(name: str, shift: float) -> None:
    """A completion that was cut, with any log-probs at all: same loss, same gradient elsewhere, none of its own."""
    for aggregation in ("sequence", "token"):
        for own in CORRECTED:
            changes = {"loss": name, "mask_truncated": True, "aggregation": aggregation} | own
            inputs = case(torch.float32, changes)
            cut = torch.arange(inputs.rows_here) == inputs.row[2]
            reference = inputs.logp.detach() - 0.1
            inputs = replace(inputs, ref_logp=reference, truncated=cut, coefficients=Coefficients(beta=0.04))
            loss, gradient = gradient_of(inputs, name)
            for field in ("logp", "old_logp", "engine_logp", "ref_logp"):
                moved, own_gradient = gradient_of(far_off(inputs, field, shift), name)
                assert torch.equal(moved, loss), (aggregation, own, field)
                assert torch.equal(own_gradient, gradient), (aggregation, own, field)
            assert not gradient[2].any()


@pytest.mark.parametrize("shift", FAR)
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])
def test_law_7_through_a_model_in_bfloat16(name: str, shift: float) -> None:
    """Off-policy too: no weight gets any gradient, not the least."""
    model = tiny.model().to(torch.bfloat16)
    groups = tiny.ragged()
    pack = build_pack(groups, model, banned=tiny.BANNED, advantages=[[0.0] * len(one.rewards) for one in groups])
    logp = packed_logprobs(model, pack, ScoringSpec(banned=tiny.BANNED)).logp
    assert logp.dtype == torch.float32
    old = logp.detach().clone()
    old[::3] += shift
    objective = ObjectiveConfig(loss=name if name in SURROGATES else "grpo", correction="truncate")  # type: ignore[arg-type]
    step = case(torch.float32, {}).step
    inputs = pack.inputs(
        logp, None, step=step, coefficients=Coefficients(beta=0.0), old_logp=old, objective=objective, longest=8
    )
    flat = replace(inputs, reward=torch.zeros_like(inputs.reward))
    torch.autograd.backward(LOSSES[name](flat).loss)
    assert any(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


VALUES = (0.0, 1.0, 1.2, 0.7, -3.3, 1e-30, 1e15)  # in float32 the mean of many 1.2 is not 1.2


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("how", COMPARISONS)
def test_a_step_of_one_reward_has_no_advantages(how: str, value: float) -> None:
    """Exactly none, by any comparison, for any number and length of completions."""
    for size in (2, 3, 7, 16, 61):
        lengths = [torch.arange(size) % 5 + 1] * 3
        found = COMPARISONS[how](StepRewards(rewards=[torch.full((size,), value)] * 3, lengths=lengths))
        assert not torch.cat(found).any(), (size, torch.cat(found).abs().max())


@pytest.mark.parametrize("how", [name for name in COMPARISONS if not name.startswith("whitened")])
def test_a_group_of_one_reward_has_no_advantages_beside_others(how: str) -> None:
    """All but those that compare with the mean of the step in the end."""
    rewards = [torch.full((16,), 1.2), torch.full((16,), 0.7), torch.tensor([0.0, 1.0] * 8)]
    found = COMPARISONS[how](StepRewards(rewards=rewards, lengths=[torch.ones(16, dtype=torch.long)] * 3))
    flat, other = torch.cat(found[:2]), found[2]
    assert other.any()
    assert not flat.any()
