"""Log-probs, rewards and weights that are far off or no numbers, on real ranks: each step ends as it should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import EngineError
from common.types import ScoredGroup, StepResult
from learner.driver.parity_probe import check_gaps
from tests.helpers import tiny
from tests.learner.trainer.test_dead_groups import EVERY_GROUP, batch, configure
from tests.learner.trainer.test_group import opened, unpack

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


def say_engine(scored: Sequence[ScoredGroup], logp: float) -> list[ScoredGroup]:
    """Return the groups with one token to which the engine gave this log-prob."""
    first, *others = scored
    one, *rest = first.group.completions
    said = replace(one, logprobs=(logp, *one.logprobs[1:]))
    return [replace(first, group=replace(first.group, completions=(said, *rest))), *others]


def assert_finite(result: StepResult) -> None:
    for field in fields(result):
        value = getattr(result, field.name)
        assert not isinstance(value, float) or math.isfinite(value), field.name


CASES: list[tuple[int, str, dict[str, Any]]] = [
    (0, "float32", {"correction": "none", "loss": "rloo"}),
    (1, "bfloat16", {"correction": "truncate"}),
    (2, "bfloat16", {"correction": "mask", "correction_level": "sequence", "loss": "gmpo"}),
    (3, "bfloat16", {"correction": "truncate", "correction_level": "mean", "loss": "cispo"}),
    (3, "float32", {"correction": "none", "sequence_mask": 0.5, "loss": "gspo"}),
]


@pytest.mark.parametrize(("stage", "dtype", "objective"), CASES)
def test_log_probs_of_an_engine_that_are_far_off_or_no_numbers(
    ray_session: None, model_path: Path, stage: int, dtype: str, objective: dict[str, Any]
) -> None:
    """A giant ratio of either sign is borne, and reported in finite figures. One that is no number is never trained on:
    a correction makes the step none, and else law 1 refuses it before anything is published."""
    config = configure(model_path, ranks=2, stage=stage, dtype=dtype, objective=objective | {"updates": 2})
    corrected = objective["correction"] != "none"
    with opened(config) as group:
        for at, logp in enumerate((-500.0, -60.0, 0.0, 60.0, 500.0)):
            result = group.step(say_engine(batch(at), logp), at=0)
            assert result.updates == 2
            assert_finite(result)
            assert result.logprob_gap_max > abs(logp) / 2
            assert (result.corrected_share > 0) == corrected
        before = unpack(group.publish(1))
        assert all(tensor.isfinite().all() for tensor in before.values())

        for logp in (math.nan, -math.inf):
            scored = say_engine(batch(5), logp)
            result = group.step(scored, at=0)
            assert result.updates == (0 if corrected and math.isnan(logp) else 2)
            with pytest.raises(EngineError, match="disagree about the policy"):
                check_gaps(config, 0, scored, result.gaps)
        assert all(tensor.isfinite().all() for tensor in unpack(group.publish(2)).values())


@pytest.mark.parametrize(
    ("stage", "dtype", "advantage", "how"),
    [
        (0, "float32", "group", "auto"),
        (1, "bfloat16", "batch", "keep"),
        (2, "float32", "whitened", "auto"),
        (3, "bfloat16", "mean", "auto"),
    ],
)
def test_rewards_that_are_all_equal_teach_nothing_and_break_nothing(
    ray_session: None, model_path: Path, stage: int, dtype: str, advantage: str, how: str
) -> None:
    """All 0, all 1.2, or 1.2 in some groups and 0.7 in others; read or not, whatever they are compared with. Adam goes
    on by its moments, and the next step is as any other. Only `whitened` compares groups with each other."""
    mixed = {**EVERY_GROUP, **dict.fromkeys((0, 3, 5), 0.7)}
    steps = [batch(0, dict.fromkeys(EVERY_GROUP, 0.0)), batch(0, EVERY_GROUP), batch(0, mixed)]
    own = {"advantage": advantage, "dead_groups": how}
    with opened(configure(model_path, ranks=2, stage=stage, dtype=dtype, objective=own)) as group:
        for scored in steps[: 2 if advantage == "whitened" else 3]:
            result = group.step(scored, at=0)
            assert (result.updates, result.grad_norm) == (1, 0.0)
            assert_finite(result)
        result = group.step(batch(1), at=0)
        assert result.updates == 1 and result.grad_norm > 0


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (3, "bfloat16")])
def test_a_weight_that_is_no_number_is_never_trained_on(
    ray_session: None, tmp_path: Path, stage: int, dtype: str
) -> None:
    """Every step is skipped, on all ranks; that of dead groups alone too."""
    model = tiny.model()
    with torch.no_grad():
        model.model.language_model.norm.weight[3] = math.nan
    model.save_pretrained(tmp_path / "model")
    with opened(configure(tmp_path / "model", ranks=2, stage=stage, dtype=dtype)) as group:
        for scored in (batch(0), batch(1, EVERY_GROUP)):
            result = group.step(scored, at=0)
            assert result.updates == 0 and math.isnan(result.loss)
