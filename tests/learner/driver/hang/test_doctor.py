"""The hang doctor without a cluster: when it speaks, and how it says who waits for whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytest

from learner.driver.hang import doctor
from learner.driver.hang.doctor import Diagnosis, HangDoctor, describe_wait
from learner.driver.hang.sights import STATES, Sight, read_process_state
from learner.driver.hang.wait import Wait, find_wait
from rollout.fleet.thread import LoopThread

AT = "pid 17 on 10.0.0.9"


def sight(name: str, state: str, *, owes: bool = True, answers: bool = True) -> Sight:
    return Sight(name=name, process=AT, owes=owes, answers=answers, state=state, stacks="")


STOPPED = "is stopped and does not answer"
LINES = [
    (
        Wait(part="engine", what="groups"),
        [sight("engine-0", "has nothing to do", owes=False), sight("engine-1", STOPPED, answers=False)],
        f"driver waits for groups: engine-1 ({AT}) is stopped and does not answer",
    ),
    (
        Wait(part="learner", what="a learner step"),
        [sight("rank-0", "is at zero.py:9 in step"), sight("rank-1", STOPPED, answers=False)],
        f"driver waits for a learner step: rank-1 ({AT}) {STOPPED}; rank-0 ({AT}) is at zero.py:9 in step",
    ),
    (
        Wait(part="engine", what="groups"),
        [sight(f"engine-{number}", "is starting") for number in range(6)],
        "driver waits for groups: "
        + "; ".join(f"engine-{number} ({AT}) is starting" for number in range(4))
        + "; 2 more",
    ),
    (
        Wait(part="reward", what="rewards"),
        [sight("reward-0", "has nothing to do", owes=False)],
        "driver waits for rewards, and nobody owes any",
    ),
    (Wait(part="data", what="rows"), [], "driver waits for rows"),
    (
        Wait(part=None, what="learner/driver/run.py:9 in x"),
        [],
        "driver waits for nobody, it is at learner/driver/run.py:9 in x",
    ),
]


@pytest.mark.parametrize(("wait", "sights", "line"), LINES)
def test_the_line_names_those_first_that_do_not_answer(wait: Wait, sights: list[Sight], line: str) -> None:
    assert describe_wait(wait, sights) == line


def test_a_wait_is_read_from_the_stack_of_the_thread_that_waits() -> None:
    """A real one, of the fleet's; and one that is no wait for a part."""
    loop = LoopThread("test")
    begun, end = threading.Event(), threading.Event()

    async def never() -> None:
        begun.set()
        end.wait(30)

    def wait_for_it() -> None:
        loop.call(never(), what="an engine to hold version 3", timeout_s=30.0)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    begun.wait(30)
    found = find_wait(_frame_of(thread))
    end.set()
    thread.join()
    loop.close()
    assert found == Wait(part="engine", what="an engine to hold version 3")
    assert find_wait(None) == Wait(part=None, what="an unknown place")


def _frame_of(thread: threading.Thread) -> FrameType:
    assert thread.ident is not None
    return sys._current_frames()[thread.ident]  # noqa: SLF001  # no other way to see another thread


def test_linux_says_of_a_process_that_it_is_stopped() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        os.kill(process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 30
        while read_process_state(process.pid) != "T":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert STATES[read_process_state(process.pid)] == STOPPED
    finally:
        process.kill()
        process.wait()
    assert STATES[read_process_state(process.pid)] == "is gone"


Told = list[Diagnosis]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TICK_S", 0.01)
    monkeypatch.setattr(doctor, "takes_output", lambda: True)
    monkeypatch.setattr(doctor, "look_at", lambda views: [])


def watch(limit_s: float, count_progress: Callable[[], object]) -> tuple[HangDoctor, Told]:
    told: Told = []
    return HangDoctor(limit_s=limit_s, count_progress=count_progress, list_actors=dict, tell=told.append), told


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("quick")
def test_it_speaks_once_for_each_time_that_nothing_moves() -> None:
    """With the driver's own stack, which is in this test."""
    progress = [0]
    own, told = watch(0.1, lambda: progress[0])
    with own.watch():
        wait_until(lambda: told)
        time.sleep(0.3)
        assert len(told) == 1
        progress[0] += 1
        wait_until(lambda: len(told) == 2)
    assert told[0].seconds >= 0.1
    assert "driver waits for nobody" in told[0].line
    assert "wait_until" in told[0].stacks


@pytest.mark.usefixtures("quick")
def test_it_is_silent_while_anything_moves() -> None:
    """However slow this machine is: each look sees another count."""
    looks = iter(range(10**9))
    own, told = watch(0.05, lambda: next(looks))
    with own.watch():
        wait_until(lambda: next(looks) > 50)
    assert not told


@pytest.mark.usefixtures("quick")
def test_what_moves_again_during_the_look_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, looks = [0], [0]

    def look_at(views: object) -> list[Sight]:
        progress[0] += 1
        looks[0] += 1
        return []

    monkeypatch.setattr(doctor, "look_at", look_at)
    own, told = watch(0.05, lambda: progress[0])
    with own.watch():
        wait_until(lambda: looks[0] >= 3)
    assert not told
