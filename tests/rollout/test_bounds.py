"""Sampling settings: the door lets pass what vLLM's own SamplingParams leaves as it is, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from common.config.sections import MOST_ANSWERS
from common.errors import EngineError
from common.types import GenerationRequest, Sampling
from rollout.exchange.outputs import make_sampling_params
from rollout.spec import EngineSpec
from tests.common.config.test_bounds import accepts

pytestmark = pytest.mark.slow  # imports vLLM
OWN = Sampling(n=4, temperature=1.0, top_p=1.0, top_k=0, max_tokens=8)
INTS = (-(2**63), -2, 0, 1, 2, 3, 8, 1000, 16383, 16384, 16385, 2**31 - 1, 2**31, 2**63)
FLOATS = (
    *(math.nan, math.inf, -math.inf, -1.0, -1e-9, 0.0, 5e-324, 1e-6, 0.005, 0.0099999, 0.01, 0.0100001, 0.5, 1.0),
    *(1.0000001, 1.9999, 2.0, 2.0000001, 10.0, 1000.0, 1e308),
)


def request(sampling: dict[str, Any], seed: int = 7) -> GenerationRequest:
    made = Sampling(**{name: sampling.get(name, getattr(OWN, name)) for name in Sampling.__slots__})
    return GenerationRequest(prompt_id="train/1", token_ids=(1,), images=None, seed=seed, sampling=made)


def takes(name: str, value: Any) -> bool:
    """Whether vLLM takes a value and leaves it as it is."""
    from vllm.exceptions import VLLMError

    try:
        make_sampling_params(request({name: value}))
    except (ValueError, VLLMError, EngineError):
        return False
    return True


@pytest.mark.parametrize("value", FLOATS)
def test_the_temperature(value: float) -> None:
    """vLLM takes 0 for greedy, which is nothing to learn from."""
    assert accepts("rollout.temperature", value) is (takes("temperature", value) and value != 0)


@pytest.mark.parametrize("value", FLOATS)
def test_top_p(value: float) -> None:
    assert accepts("rollout.top_p", value) is takes("top_p", value)


@pytest.mark.parametrize(
    ("key", "name", "least"),
    [
        ("rollout.group_size", "n", 2),
        ("evaluation.samples", "n", 1),
        ("rollout.top_k", "top_k", 0),
        ("rollout.max_completion_tokens", "max_tokens", 1),
    ],
)
@pytest.mark.parametrize("value", INTS)
def test_whole_numbers(key: str, name: str, least: int, value: int) -> None:
    """vLLM takes one answer a prompt too, and keeps these numbers in tensors of 32 bits."""
    if key == "evaluation.samples" and value == 0:
        return  # samples nothing
    fits = -(2**31) <= value < 2**31
    assert accepts(key, value) is (takes(name, value) and value >= least and fits)


def test_the_values_of_every_request_arrive_unchanged() -> None:
    """Greedy ones too, and seeds at both ends; a value that vLLM would change is refused by the engine itself."""
    for seed in (0, 1, 2**48 - 1):
        assert make_sampling_params(request({}, seed=seed)).seed == seed
    greedy = make_sampling_params(request({"n": 1, "temperature": 0.0}))
    assert (greedy.temperature, greedy.top_p, greedy.top_k) == (0, 1, 0)
    with pytest.raises(EngineError, match=r"temperature 0\.005 to 0\.01"):
        make_sampling_params(request({"temperature": 0.005}))
    with pytest.raises(EngineError, match="seed -1 to None"):
        make_sampling_params(request({}, seed=-1))


def test_an_engine_takes_as_many_answers_as_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the variable of vLLM is on this machine; by default it is the same."""
    from vllm import envs

    monkeypatch.delenv("VLLM_MAX_N_SEQUENCES", raising=False)
    assert envs.VLLM_MAX_N_SEQUENCES == MOST_ANSWERS
    values: dict[str, Any] = dict.fromkeys(EngineSpec.__slots__, 0)
    spec = EngineSpec(**{**values, "device": "cpu"})
    assert spec.environment()["VLLM_MAX_N_SEQUENCES"] == str(MOST_ANSWERS)
