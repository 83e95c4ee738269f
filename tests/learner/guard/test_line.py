"""The main thread is seen to move or not, whatever it waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, Queue
from typing import Any

import pytest

from learner.guard.line import has_deadline


class _Sleeper:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def watch(wait: Callable[[], object]) -> tuple[list[float], list[bool]]:
    """CPU seconds of this thread while it waits, every second, and whether that is a wait with a deadline."""
    thread, over = threading.get_ident(), threading.Event()
    clock = time.pthread_getcpuclockid(thread)
    used: list[float] = []
    bounded: list[bool] = []

    def look() -> None:
        while not over.wait(1.2):
            used.append(time.clock_gettime(clock))
            bounded.append(has_deadline(thread))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        wait()
    finally:
        over.set()
        looking.join()
    return used, bounded


@pytest.mark.engine
@pytest.mark.parametrize("how", ["get", "wait"])
def test_a_wait_for_ray_looks_up_every_second(ray_session: None, how: str) -> None:
    """So the thread is not taken for one that stands still."""
    import ray

    actor: Any = ray.remote(num_cpus=0)(_Sleeper).remote()
    ray.get(actor.sleep.remote(0), timeout=60)
    ref = actor.sleep.remote(7)
    used, _ = watch(lambda: ray.get(ref, timeout=60) if how == "get" else ray.wait([ref], timeout=60))
    assert len(used) >= 4
    assert len(set(used)) == len(used), used


def ask_future() -> None:
    with suppress(TimeoutError):
        Future[None]().result(3)


def ask_queue() -> None:
    with suppress(Empty):
        Queue[int]().get(timeout=3)


@pytest.mark.slow
@pytest.mark.parametrize("wait", [lambda: threading.Event().wait(3), ask_future, ask_queue])
def test_a_wait_of_pythons_is_known_by_its_deadline(wait: Callable[[], object]) -> None:
    _, bounded = watch(wait)
    assert bounded and all(bounded)


@pytest.mark.slow
def test_a_wait_without_a_deadline_stands_still() -> None:
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(3, lock.release).start()
    used, bounded = watch(lock.acquire)
    assert len(set(used)) == 1 and not any(bounded)
