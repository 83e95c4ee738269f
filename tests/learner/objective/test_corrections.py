"""Weights for the distance between engine and learner."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.objective import ObjectiveConfig
from common.config.schema import Config
from learner.objective.corrections import WEIGHTS, correct, settle
from learner.objective.losses import LOSSES
from learner.objective.ratios import SURROGATES
from tests.learner.objective.test_reference_values import ENGINE, NEW, OLD, ROW, case

CORRECTIONS: list[dict[str, Any]] = [
    {"correction": kind, "correction_level": level} for kind in ("truncate", "mask") for level in WEIGHTS
] + [
    {"sequence_mask": 0.05},
    {"correction": "bypass"},
    {"correction": "truncate", "correction_high": 1.0},
    {"correction": "mask", "correction_low": 1.0, "correction_high": 1.0},
    {"correction": "bypass", "clip_low": 0.0, "clip_high": 1e-30, "dual_clip": 1.5},
]
WEIGHING = [own for own in CORRECTIONS if own.get("correction") in ("truncate", "mask")]


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("loss", SURROGATES)
@pytest.mark.parametrize("on_policy", [True, False])
def test_where_both_agree_every_correction_is_the_identity(
    correction: dict[str, Any], loss: str, on_policy: bool
) -> None:
    """Bit for bit, in float32, in the first update of a step and after it."""
    found = []
    for own in ({}, correction):
        inputs = case(torch.float32, {"loss": loss} | own, on_policy=True)
        behaviour = inputs.logp.detach().clone()
        inputs = replace(inputs, engine_logp=behaviour, old_logp=None if on_policy else behaviour)
        loss_value = LOSSES[loss](inputs).loss
        torch.autograd.backward(loss_value)
        found.append((loss_value, inputs.logp.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] is not None
    assert found[1][1] is not None
    assert torch.equal(found[0][1], found[1][1])


@settings(deadline=None)
@given(st.lists(st.floats(-80, 0, width=32), min_size=6, max_size=6))
def test_weights_are_finite_and_in_their_band(engine: list[float]) -> None:
    """However far engine and learner are apart; a masked or truncated token is counted as touched."""
    for own in WEIGHING:
        objective = ObjectiveConfig(**own)
        inputs = replace(case(torch.float32, own), engine_logp=torch.tensor(engine))
        corrected = correct(inputs)
        weight = corrected.weight
        assert torch.isfinite(weight).all()
        assert not weight.requires_grad
        assert (weight <= objective.correction_high).all()
        if objective.correction == "mask":
            assert ((weight == 0) | (weight >= objective.correction_low)).all()
            assert torch.equal(corrected.touched, weight == 0)
        else:
            assert torch.equal(corrected.touched, weight == objective.correction_high) or not corrected.touched.all()


def test_the_worked_example() -> None:
    """Of the docstring: weights of 0.4, 1 and 3 under a band of 0.5 to 2."""
    ratios = torch.tensor([0.4, 1.0, 3.0, 1.0, 1.0, 1.0])
    for kind, wanted in (("truncate", [0.4, 1.0, 2.0]), ("mask", [0.0, 1.0, 0.0])):
        inputs = case(torch.float32, {"correction": kind})
        corrected = correct(replace(inputs, engine_logp=inputs.anchor - ratios.log()))
        torch.testing.assert_close(corrected.weight[:3], torch.tensor(wanted))


@pytest.mark.parametrize("correction", WEIGHING)
@pytest.mark.parametrize("loss", SURROGATES)
def test_rows_that_are_not_to_be_corrected_keep_their_bits(correction: dict[str, Any], loss: str) -> None:
    """Of two groups one is corrected: each has the gradient of a step that corrects both, or none."""
    acts = torch.tensor([False, False, True, True])

    def learn(own: dict[str, Any], corrected: torch.Tensor | None) -> torch.Tensor:
        inputs = replace(case(torch.float32, {"loss": loss} | own), corrected=corrected)
        torch.autograd.backward(LOSSES[loss](inputs).loss)
        assert inputs.logp.grad is not None
        return inputs.logp.grad

    mixed, all_of_them, none = learn(correction, acts), learn(correction, None), learn({}, None)
    tokens = acts[torch.tensor(ROW)]
    assert torch.equal(mixed, torch.where(tokens, all_of_them, none))
    assert not torch.equal(mixed, none)
    assert torch.equal(learn(correction, torch.zeros_like(acts)), none)


def test_the_band_of_geometric_means() -> None:
    """A completion is kept whole, weighed with the geometric mean over its tokens, or left out whole."""
    found = correct(case(torch.float64, {"correction": "mask", "correction_level": "mean", "correction_low": 0.9}))
    wanted, masked = [], []
    for row in range(4):
        own = [math.exp(OLD[at] - ENGINE[at]) for at in range(6) if ROW[at] == row]
        mean = math.prod(own) ** (1 / len(own))
        inside = 0.9 <= mean <= 2.0
        wanted += [mean if inside else 0.0] * len(own)
        masked += [not inside] * len(own)
    torch.testing.assert_close(found.weight, torch.tensor(wanted, dtype=torch.float64))
    assert found.touched.tolist() == masked
    assert 0 < sum(masked) < 6


@pytest.mark.parametrize("on_policy", [True, False])
def test_bypass_clips_the_ratio_to_the_engine(on_policy: bool) -> None:
    """In the first update too, written out token by token; no weight is left to correct with."""
    inputs = case(torch.float64, {"correction": "bypass"}, on_policy=on_policy)
    outputs = LOSSES["grpo"](inputs)
    total, gradient = 0.0, []
    for row, new, engine in zip(ROW, NEW, ENGINE, strict=True):
        advantage, ratio = inputs.advantage[row].item(), math.exp(new - engine)
        clipped = min(max(ratio, 0.8), 1.2)
        share = 1 / (4 * ROW.count(row))
        total -= share * min(ratio * advantage, clipped * advantage)
        gradient.append(-share * ratio * advantage if ratio * advantage <= clipped * advantage else 0.0)
    assert outputs.loss.item() == pytest.approx(total, abs=1e-12)
    torch.autograd.backward(outputs.loss)
    torch.testing.assert_close(inputs.logp.grad, torch.tensor(gradient, dtype=torch.float64))
    assert torch.equal(correct(inputs).weight, torch.ones(6, dtype=torch.float64))


def test_what_is_corrected_by_lag() -> None:
    """auto in float32: the stale groups of a pack alone, or nothing of a pack that has none."""
    config = Config.model_validate({"model": {"dtype": "float32"}})
    objective, acts = settle(config, [0, 2, 0, 1])
    assert (objective.correction, acts) == ("truncate", [False, True, False, True])
    assert settle(config, [0, 0])[0].correction == "none"
    assert settle(config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})}), [0])[1]
