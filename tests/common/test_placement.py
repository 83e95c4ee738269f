"""No wait on Ray hangs, and no placement either."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

from common.capacity import PlaceRequest
from common.command import Terminated
from common.errors import DeadlineError, PlacementError, RewardError
from common.placement import find_cause, get, reserve, wait

pytestmark = pytest.mark.engine


class _Part:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def refuse(self) -> None:
        raise RewardError("what", got="got", remedy="remedy")

    def break_down(self) -> None:
        raise KeyError("key")


@pytest.fixture(scope="module")
def part(ray_session: None) -> Any:
    import ray

    part: Any = ray.remote(num_cpus=0)(_Part).remote()
    ray.get(part.sleep.remote(0), timeout=60)
    return part


def test_a_wait_past_its_deadline_is_named(part: Any) -> None:
    with pytest.raises(DeadlineError, match=r"the slow part(.|\n)*1 of 2 still missing after 0.5 s"):
        get([part.sleep.remote(0), part.sleep.remote(5)], what="the slow part", timeout_s=0.5)


def test_the_first_failure_ends_a_long_wait_for_all(ray_session: None) -> None:
    """A rank that fails must be told of, whatever the others still wait for."""
    parts: list[Any] = [ray.remote(num_cpus=0)(_Part).remote() for _ in range(2)]
    slow, broken = parts
    began = time.monotonic()
    calls = [slow.sleep.remote(120), broken.sleep.remote(3), broken.refuse.remote()]
    with pytest.raises(RewardError):
        get(calls, what="both", timeout_s=100)
    assert time.monotonic() - began < 60
    ray.kill(slow)


def test_an_error_of_ours_arrives_as_it_was_raised(part: Any) -> None:
    with pytest.raises(RewardError) as caught:
        get([part.refuse.remote()], what="it", timeout_s=30)
    assert type(caught.value) is RewardError
    assert (caught.value.what, caught.value.got, caught.value.remedy) == ("what", "got", "remedy")


def test_other_errors_pass_through(part: Any) -> None:
    with pytest.raises(KeyError, match="key"):
        get([part.break_down.remote()], what="it", timeout_s=30)


CALLS: dict[str, Callable[[Any], Any]] = {
    "wait": lambda ref: wait([ref], timeout_s=60),
    "get": lambda ref: get([ref], what="a nap", timeout_s=60),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_signal_that_strikes_within_a_wait_for_ray_arrives_as_it_was_raised_and_soon(
    ray_session: None, call: str
) -> None:
    """Ray's own `wait` lets none through before it ends, which may be the deadline."""
    sleeper: Any = ray.remote(num_cpus=0)(_Part).remote()
    ray.get(sleeper.sleep.remote(0), timeout=60)

    def handle(number: int, frame: Any) -> None:
        raise Terminated(number)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(Terminated):
            CALLS[call](sleeper.sleep.remote(60.0))
        assert time.monotonic() - began < 30
    finally:
        ray.kill(sleeper)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("bundle", [{"CPU": 1000.0, "GPU": 0.0}, {"GPU": 64.0}])
def test_too_small_a_cluster_is_refused_at_once_with_numbers(ray_session: None, bundle: dict[str, float]) -> None:
    begin = time.monotonic()
    with pytest.raises(PlacementError, match=r"cannot hold 2 x the part (.|\n)*(2000|128) needed, .* free of"):
        reserve([PlaceRequest(what="the part", bundles=(bundle,))] * 2, wait_s=0)
    assert time.monotonic() - begin < 5


def test_a_full_cluster_is_refused_in_time_and_keeps_nothing(ray_session: None) -> None:
    """It would be large enough, but somebody holds it."""
    import ray
    from ray.util.placement_group import remove_placement_group

    free = float(ray.available_resources().get("CPU", 0.0))
    (held,) = reserve([PlaceRequest(what="nearly all of it", bundles=({"CPU": free - 1},))], wait_s=0)
    two = [PlaceRequest(what=what, bundles=({"CPU": 1},)) for what in ("one more", "too many")]
    try:
        with pytest.raises(PlacementError, match=r"cannot hold too many(.|\n)*1 needed"):
            reserve(two, wait_s=0, grant_s=4.0)
        for place in reserve(two[:1], wait_s=0):  # what was granted beside the refused one is free again
            remove_placement_group(place)
    finally:
        remove_placement_group(held)


def test_members_that_ask_for_nothing_get_a_place(ray_session: None) -> None:
    from ray.util.placement_group import remove_placement_group

    (place,) = reserve([PlaceRequest(what="nothing", bundles=({"CPU": 0, "GPU": 0},))], wait_s=0)
    remove_placement_group(place)


class _Unready:
    def __init__(self) -> None:
        raise RewardError("no model here", got="an empty folder", remedy="fetch it")

    def pid(self) -> int:
        return 0


def test_the_cause_of_a_start_that_failed_is_found_under_rays_traceback(ray_session: None) -> None:
    import ray

    actor: Any = ray.remote(num_cpus=0)(_Unready)
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        ray.get(actor.remote().pid.remote(), timeout=60)
    cause = "common.errors.RewardError: no model here; got:    an empty folder; remedy: fetch it"
    assert find_cause(caught.value) == cause
