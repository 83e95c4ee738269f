"""A reference that follows the policy, in one process: what moves, what stays, and what rounding must not eat."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.schema import Config
from common.errors import CheckpointError
from learner.model.reference import MovingReference
from tests.helpers import tiny


def pair(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A policy whose vision tower is frozen, and its reference."""
    policy = tiny.model().to(dtype)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("visual" not in name)
    return policy, copy.deepcopy(policy).requires_grad_(False)


def follow(policy: Any, reference: Any, **learner: Any) -> MovingReference:
    config = Config.model_validate({"learner": learner})
    return MovingReference(policy, reference, config, refresh=lambda _: None)


def move(policy: Any, by: float) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1 + by)


def equal(one: Any, other: Any, *, but: Sequence[str] = ()) -> bool:
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, yours) for (name, mine), yours in pairs if not any(word in name for word in but))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reset_makes_it_the_policy_at_the_versions_asked_for(dtype: torch.dtype) -> None:
    policy, reference = pair(dtype)
    moving, tower = follow(policy, reference, reference_reset_every=3), copy.deepcopy(policy.model.visual)
    for version in range(1, 8):
        move(policy, 0.1)
        moving.follow(version)
        assert equal(policy, reference, but=["visual"]) == (version in (3, 6))
    assert equal(reference.model.visual, tower), "what does not train stays"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_is_that_of_an_oracle_in_float64(dtype: torch.dtype) -> None:
    """In bfloat16 too, where the moves of one step are far below what a weight can show."""
    policy, reference = pair(dtype)
    start, moving = copy.deepcopy(reference), follow(policy, reference, reference_ema=0.99)
    wanted = [parameter.double() for parameter in policy.parameters() if parameter.requires_grad]
    for version in range(1, 60):
        move(policy, 0.01 if version == 1 else 0.0)
        moving.follow(version)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        wanted = [0.99 * old + 0.01 * new.detach().double() for old, new in zip(wanted, trained, strict=True)]
    found = [old for new, old in zip(policy.parameters(), reference.parameters(), strict=True) if new.requires_grad]
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=2e-6 if dtype == torch.float32 else 2**-8, atol=1e-8)
    assert not equal(start, reference, but=["visual"])


@pytest.mark.parametrize("learner", [{"reference_ema": 0.9}, {"reference_reset_every": 2}])
def test_it_goes_on_bit_for_bit_from_its_state(learner: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        policy, reference = pair(dtype)
        moving = follow(policy, reference, **learner)
        for version in (1, 2, 3):
            move(policy, 0.01)
            moving.follow(version)
        saved = copy.deepcopy(moving.state())
        other = copy.deepcopy(pair(dtype)[1])
        resumed = follow(policy, other, **learner)
        resumed.restore(saved)
        assert equal(reference, other, but=["visual"])
        move(policy, 0.01)
        for one in (moving, resumed):
            one.follow(4)
        assert equal(reference, other, but=["visual"])


@pytest.mark.parametrize("spoil", [lambda one: one[:1], lambda one: one.half(), lambda one: one[None]])
def test_tensors_of_another_kind_are_refused(spoil: Any) -> None:
    policy, reference = pair()
    moving = follow(policy, reference, reference_ema=0.9)
    kept: list[Tensor] = moving.state()["kept"]
    with pytest.raises(CheckpointError, match="of another kind"):
        moving.restore({"kept": [spoil(kept[0]), *kept[1:]]})
