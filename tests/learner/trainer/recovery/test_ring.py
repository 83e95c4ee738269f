"""Real DeepSpeed ranks that are killed within a step: all are built anew, and end with the bits of ranks left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from common.config.schema import Config
from learner.trainer.group import LearnerGroup
from tests.helpers import tiny
from tests.learner.trainer.test_group import Weights, batch, settings, unpack

pytestmark = pytest.mark.engine
STEPS = 3


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


def strike(rank: Any, method: str) -> None:
    """Kill a rank once it is in `method` of its DeepSpeed engine, the other one beside it."""

    def arm(self: Any) -> None:
        wanted = getattr(self._engine, method)

        def die(*args: Any, **kwargs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)
            return wanted(*args, **kwargs)

        setattr(self._engine, method, die)

    ray.get(rank.__ray_call__.remote(arm))


@contextmanager
def opened(config: Config, events: list[dict[str, Any]]) -> Iterator[LearnerGroup]:
    group = LearnerGroup(
        config,
        model_path=config.model.path,
        banned=tiny.BANNED,
        steps=config.steps,
        on_event=lambda kind, **fields: events.append({"kind": kind, **fields}),
    )
    try:
        group.ready(180)
        yield group
    finally:
        group.close()


def take(group: LearnerGroup, step: int) -> Any:
    result = group.step(batch(step), at=step)
    weights = unpack(group.publish(step + 1))
    group.keep()
    return result, weights


def assert_same(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("stage", [0, 3])
def test_a_rank_killed_in_a_step_costs_no_bit(ray_session: None, model_path: Path, stage: int) -> None:
    """In backward, before any copy; then in the optimizer step, after one (law 5)."""
    config, events = settings(model_path, ranks=2, stage=stage), list[dict[str, Any]]()
    with opened(config, []) as group:
        wanted = [take(group, step) for step in range(STEPS)]
    with opened(config, events) as group:
        found = []
        for step in range(STEPS):
            if step != 1:
                strike(group._ring.ranks[1 if step else 0], "step" if step else "backward")  # noqa: SLF001
            found.append(take(group, step))
    for (result, weights), (mine, own) in zip(wanted, found, strict=True):
        assert (result.loss, result.grad_norm) == (mine.loss, mine.grad_norm)
        assert_same(weights, own)
    told = [one for one in events if one["kind"] != "rank_up"]
    assert [(one["kind"], one.get("rank"), one.get("source"), one["step"]) for one in told] == [
        ("rank_lost", 0, None, 0),
        ("learner_rebuilt", None, "start", 0),
        ("rank_lost", 1, None, 2),
        ("learner_rebuilt", None, "memory", 2),
    ]
