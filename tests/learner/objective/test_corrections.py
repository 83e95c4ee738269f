"""Weights for the distance between engine and learner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.objective import ObjectiveConfig
from learner.objective.corrections import WEIGHTS, correct
from learner.objective.losses import LOSSES
from learner.objective.ratios import SURROGATES
from tests.learner.objective.test_reference_values import case

CORRECTIONS: list[dict[str, Any]] = [
    {"correction": kind, "correction_level": level} for kind in ("truncate", "mask") for level in WEIGHTS
] + [{"sequence_mask": 0.05}]


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
    for own in CORRECTIONS[:-1]:
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
