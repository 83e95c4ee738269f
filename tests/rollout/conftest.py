"""One engine, shared by every test that needs vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config.schema import Config
from rollout.fleet.fleet import RolloutFleet
from rollout.spec import engine_spec
from tests.helpers.policy import Policy


@pytest.fixture(scope="session")
def _policy(random_qwen2vl: Path) -> Policy:
    return Policy(random_qwen2vl)


@pytest.fixture
def policy(_policy: Policy) -> Policy:
    """The learner's side of the engine's model, with the weights it was made with."""
    _policy.reset()
    return _policy


@pytest.fixture(scope="session")
def fleet_config(random_qwen2vl: Path) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(random_qwen2vl), "dtype": "float32"},
            "data": {"max_prompt_tokens": 160},
            "rollout": {"max_completion_tokens": 16, "gpus_per_engine": 0, "cpus_per_engine": 0.5, "max_restarts": 5},
            "learner": {"gpus_per_rank": 0},
            "cluster": {"device": "cpu"},
        }
    )


@pytest.fixture(scope="session")
def fleet(ray_session: None, fleet_config: Config, _policy: Policy) -> Iterator[RolloutFleet]:
    spec = engine_spec(fleet_config, model_path=fleet_config.model.path, banned=_policy.banned)
    fleet = RolloutFleet(fleet_config, spec, on_event=lambda kind, **fields: None)
    fleet.ready()
    yield fleet
    fleet.close()
