"""What a rank repeats bit for bit, and what it refuses because torch cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.config.schema import Config
from common.errors import ModelError
from learner.trainer.rng import explain_irreproducible, make_reproducible

CPU = {"rollout": {"gpus_per_engine": 0}, "learner": {"gpus_per_rank": 0}, "cluster": {"device": "cpu"}}


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(("settings", "warns"), [({}, False), (CPU, True)], ids=["cuda", "cpu"])
def test_law_5_torch_does_not_merely_warn_on_a_gpu(settings: dict[str, Any], warns: bool) -> None:
    """Where it warns, flash attention's backward keeps its order of additions, which changes from run to run."""
    make_reproducible(Config.model_validate({**settings, "seed": 7}))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
    first = torch.rand(3)
    make_reproducible(Config.model_validate({**settings, "seed": 7}))
    assert torch.rand(3).equal(first)


def test_an_operation_that_torch_cannot_repeat_is_named() -> None:
    make_reproducible(Config())
    places = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    unpool = torch.nn.MaxUnpool2d(2)  # one of the few that raise on a CPU too
    with (
        pytest.raises(ModelError, match=r"same weights(.|\n)*max_unpooling2d(.|\n)*freeze_vision"),
        explain_irreproducible(),
    ):
        unpool(torch.ones(1, 1, 1, 1), places)
    with pytest.raises(RuntimeError, match="must match"), explain_irreproducible():
        torch.ones(2) + torch.ones(3)
