"""What ended a run is found in Ray's own errors, of real actors that die, fail or lose an object."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest

from common.command import Terminated
from common.errors import DeadlineError, EngineError, ProcessError, RewardError
from learner.guard.cause import explain_ray_errors, name_cause


class LearnerRank:
    """Named as the class of the ranks is."""

    def pid(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def run_out_of_memory(self) -> None:
        raise RuntimeError("CUDA out of memory\nTried to allocate 2 GiB")

    def refuse(self) -> None:
        raise RewardError("what", got="got", remedy="remedy")


@pytest.fixture
def rank(ray_session: None) -> Any:
    import ray

    return ray.remote(num_cpus=0, max_restarts=0)(LearnerRank).remote()


def call(method: Any) -> Exception:
    """The error that a call of an actor ends a run with."""
    import ray

    with pytest.raises(Exception) as caught, explain_ray_errors():  # noqa: PT011  # any kind
        ray.get(method.remote(), timeout=60)
    return caught.value


@pytest.mark.engine
def test_a_rank_that_dies_is_one_error_with_its_cause(rank: Any) -> None:
    import ray

    pid = ray.get(rank.pid.remote(), timeout=60)
    error = call(rank.die)
    assert isinstance(error, ProcessError)
    assert error.what == f"LearnerRank (pid {pid}) is lost"
    cause = name_cause(error)
    assert (cause.ring, cause.actor) == ("learner", f"LearnerRank (pid {pid})")
    assert cause.node == ray.nodes()[0]["NodeManagerAddress"]
    assert "worker process has died" in cause.error
    assert "\n" not in cause.error


@pytest.mark.engine
def test_what_a_rank_raises_is_one_error_with_its_text(rank: Any) -> None:
    error = call(rank.run_out_of_memory)
    assert isinstance(error, ProcessError)
    assert error.got == "RuntimeError: CUDA out of memory Tried to allocate 2 GiB"
    assert (name_cause(error).ring, "CUDA out of memory" in name_cause(error).error) == ("learner", True)


@pytest.mark.engine
def test_an_error_of_ours_comes_as_it_was_raised(rank: Any) -> None:
    error = call(rank.refuse)
    assert type(error) is RewardError
    assert (name_cause(error).ring, name_cause(error).error) == ("learner", "what: got")


@pytest.mark.engine
def test_a_lost_object_is_one_error(ray_session: None) -> None:
    import ray

    def lose() -> None:
        raise ray.exceptions.OwnerDiedError("00", None, "")

    with pytest.raises(ProcessError, match="a part of the run is lost") as caught, explain_ray_errors():
        lose()
    assert name_cause(caught.value).ring == "driver"


def test_errors_of_others_pass() -> None:
    with pytest.raises(KeyError), explain_ray_errors():
        raise KeyError("a bug")


@pytest.mark.parametrize(
    ("error", "ring", "text"),
    [
        (
            EngineError("the engines are gone", got="none of 2", remedy="look"),
            "engine",
            "the engines are gone: none of 2",
        ),
        (DeadlineError("waited too long", got="1 of 2", remedy="raise it"), "driver", "waited too long: 1 of 2"),
        (ZeroDivisionError("a bug"), "driver", "ZeroDivisionError: a bug"),
        (KeyboardInterrupt(), "user", "Ctrl-C"),
        (Terminated(signal.SIGHUP), "user", "SIGHUP"),
    ],
)
def test_the_ring_is_known_by_the_error(error: BaseException, ring: str, text: str) -> None:
    cause = name_cause(error)
    assert (cause.ring, cause.error) == (ring, text)
    assert (cause.actor, cause.node) == (f"driver (pid {os.getpid()})", socket.gethostname())
