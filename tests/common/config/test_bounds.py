"""Every number of the configuration: what the door lets pass, numpy, torch, sockets and float32 hold too."""

from __future__ import annotations

import math
import random
import select
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config.schema import Config
from common.config.sections import LONGEST_WAIT_S
from common.config.settings import Setting, keys, resolve
from common.errors import ConfigError
from common.types import request_seed

HUGE = (10**6, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)
INTS = sorted({*HUGE, *(-one for one in HUGE), -1, 0, 1, 2, 3, 16384, 16385})
FLOATS = (0.0, -0.0, 5e-324, 1e-310, 1e-39, 1e-30, 1e-5, 0.5, 1.0, 2.0, 1e6, 1e9, 1e30, 1e39, 1e308, math.inf, math.nan)
COMPARED = ("learner.max_logprob_gap", "learner.mean_logprob_gap", "learner.probe_gap")  # in Python, with one number


def numbers(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield "integer" or "number" for a key that takes one, or null."""
    for option in schema.get("anyOf", [schema]):
        if option.get("type") in ("integer", "number"):
            yield option["type"]


NUMERIC = sorted((key, kind) for key, schema in keys().items() for kind in numbers(schema))


def accepts(key: str, value: object) -> bool:
    """Whether the schema takes a value of a key as text, as a command line gives it."""
    try:
        resolve([Setting(key=key, value=repr(value), origin="test")])
    except ConfigError as error:
        return f"{key} = {value!r} (test): must be" not in str(error.got)  # another key may be at fault beside it
    return True


def test_the_keys_are_all_there() -> None:
    assert len(NUMERIC) > 55
    assert {kind for _, kind in NUMERIC} == {"integer", "number"}


@pytest.mark.parametrize(("key", "kind"), NUMERIC, ids=str)
def test_whatever_number_is_let_pass_is_one_for_those_who_compute_with_it(key: str, kind: str) -> None:
    for value in INTS if kind == "integer" else (*FLOATS, *(-one for one in FLOATS)):
        if not accepts(key, value):
            continue
        if key == "seed":
            assert 0 <= value < 2**64
        elif kind == "integer":
            assert value == int(np.int32(value)), f"{key} = {value} wraps around"
        elif key in COMPARED:
            assert value > 0
        else:
            assert math.isfinite(np.float32(value)), f"{key} = {value} is infinite in float32"
            assert value >= 0, f"{key} = {value} is negative"


@pytest.mark.parametrize("key", ["learner.lr", "learner.eps", "learner.grad_clip", "rollout.temperature"])
@settings(max_examples=60, deadline=None)
@given(value=st.floats())
@example(value=5e-324)
def test_what_divides_or_scales_stays_positive_in_float32(key: str, value: float) -> None:
    if accepts(key, value):
        assert 0 < np.float32(value) < np.inf


@settings(max_examples=100, deadline=None)
@given(value=st.floats(min_value=0.9, max_value=1.1))
@example(value=1 - 2**-53)
def test_a_decay_never_becomes_1_in_float32(value: float) -> None:
    if accepts("learner.betas", [0.9, value]):
        assert np.float32(value) < 1


@settings(max_examples=100, deadline=None)
@given(seed=st.one_of(st.integers(), st.integers(-(2**65), 2**65)))
@example(seed=-1)
@example(seed=2**64 - 1)
@example(seed=2**64)
@example(seed=2**63)
def test_a_seed_is_accepted_where_numpy_torch_and_python_take_it(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        try:
            np.random.default_rng([seed, 0])
            np.random.RandomState(seed % 2**32)
            random.Random(seed)
            torch.manual_seed(seed)
        except ValueError:
            taken = False
        else:
            taken = True
    assert accepts("seed", seed) is taken
    assert 0 <= request_seed(seed, 0, "train/1") < 2**48


def test_the_longest_wait_is_one_for_all_who_wait() -> None:
    assert LONGEST_WAIT_S < threading.TIMEOUT_MAX
    assert timedelta(seconds=LONGEST_WAIT_S).days > 20
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        poll = select.poll()
        poll.register(other, select.POLLIN)
        assert poll.poll(LONGEST_WAIT_S * 1000)  # raises OverflowError beyond what it holds
        other.settimeout(LONGEST_WAIT_S)
        assert other.recv(1) == b"x"
    done = threading.Event()
    done.set()
    assert done.wait(LONGEST_WAIT_S)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT_S)
    assert signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0
    waits = [key for key, schema in keys().items() if key.endswith("_s")]
    assert len(waits) > 8
    for key in waits:
        assert accepts(key, LONGEST_WAIT_S) and not accepts(key, LONGEST_WAIT_S * 1.01)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"reward": {"functions": {"accuracy": 0, "format": 0.0}}}, "nothing could be learned"),
        ({"learner": {"lr": 0.5, "weight_decay": 2.0}}, "takes off whole weights at every step"),
        ({"steps": 10, "tracking": {"profile_steps": [10, 12]}}, "begins after the last step of steps = 10"),
        ({"rollout": {"cpus_per_engine": 1e-5}}, "rollout.cpus_per_engine = 1e-05 is less than Ray counts"),
        ({"reward": {"cpus_per_worker": 5e-324}}, "is less than Ray counts"),
    ],
)
def test_numbers_that_make_no_sense_together(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate(raw)


def test_right_neighbours_pass() -> None:
    for raw in (
        {"reward": {"functions": {"accuracy": 1.0, "format": 0.0}}},
        {"reward": {"functions": {"accuracy": -1.0}}},
        {"method": "sft", "learner": {"beta": 0.0}, "reward": {"functions": {"accuracy": 0}}},
        {"learner": {"lr": 1e-6, "weight_decay": 100.0, "betas": [0.9, 0.99999], "grad_clip": 1e9}},
        {"steps": 10, "tracking": {"profile_steps": [9, 12]}},
        {"rollout": {"cpus_per_engine": 0.0001, "temperature": 0.01, "top_k": 2**31 - 1, "group_size": 16384}},
        {"learner": {"max_logprob_gap": math.inf}},
        {"seed": 0},
        {"seed": 2**64 - 1},
    ):
        Config.model_validate(raw)


def test_epochs_of_more_steps_than_a_run_may_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="epochs ask for"):
        Config(epochs=2**31 - 1).with_epochs_as_steps(rows=1000)
