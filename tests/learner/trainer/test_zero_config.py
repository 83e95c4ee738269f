"""What DeepSpeed is told: nothing is left to a default that `--plan` counts with, and stages mean what they say."""

from __future__ import annotations

import pytest

from common.config.schema import Config
from learner.trainer.zero_config import LARGEST_BUCKET, LIVE_PARAMETERS, partition_config, training_config
from tests.helpers import tiny


def config(**learner: object) -> Config:
    return Config.model_validate({"model": {"dtype": "float32"}, "learner": {"grad_clip": 0.7, **learner}})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_decides_what_is_split_and_who_clips(stage: int) -> None:
    made = training_config(tiny.model(), config(zero_stage=stage))
    assert made["zero_optimization"]["stage"] == stage
    assert made["gradient_clipping"] == (0.7 if stage else 0.0)
    assert made["optimizer"]["params"]["lr"] == config().learner.lr


def test_buffers_are_as_large_as_a_small_model_and_never_above_the_bound() -> None:
    model = tiny.model()
    zero = partition_config(model, config(), stage=3)["zero_optimization"]
    assert zero["reduce_bucket_size"] == sum(p.numel() for p in model.parameters()) < LARGEST_BUCKET
    assert zero["stage3_max_live_parameters"] == LIVE_PARAMETERS


@pytest.mark.parametrize(
    ("offload", "waiting"),
    [("none", set()), ("optimizer", {"optimizer"}), ("optimizer_and_parameters", {"optimizer", "param"})],
)
def test_what_is_offloaded_waits_in_the_hosts_memory(offload: str, waiting: set[str]) -> None:
    zero = partition_config(tiny.model(), config(zero_stage=3, offload=offload), stage=3)["zero_optimization"]
    found = {key.removeprefix("offload_") for key in zero if key.startswith("offload_")}
    assert found == waiting
    assert all(zero[f"offload_{name}"]["device"] == "cpu" for name in waiting)
