"""Faults that come again and again: what is counted against a run, and what is not."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest

from common.errors import EngineError
from tests.faults.fleets import Events, check, pids, serve
from tests.helpers.modelled import Model, make_manifest, make_requests

pytestmark = pytest.mark.usefixtures("ray_session")


def test_more_losses_than_max_restarts_end_no_run_that_goes_on_meanwhile(start: Any, events: Events) -> None:
    """F2: a replacement that has served begins the count anew."""
    fleet = serve(start, 2, Model(), max_restarts=1)
    for loss in range(1, 5):
        os.kill(random.choice(pids(fleet)), signal.SIGKILL)
        events.wait("engine_lost", loss)
        fleet.ready()
        while len({one.engine_id for one in fleet.generate(make_requests(40))}) < 2:  # type: ignore[union-attr]
            pass
    assert fleet.restarts == 4
    assert not events.of("engine_given_up")


def test_a_replacement_that_never_comes_up_is_found_at_its_deadline_while_weights_are_published(
    start: Any, events: Events
) -> None:
    """F6: its deadline counts from its birth, whatever is published."""
    fleet = serve(start, 2, Model(hangs=frozenset({"engine-2"})), start_timeout_s=20)
    os.kill(pids(fleet)[0], signal.SIGKILL)
    events.wait("engine_lost")
    fleet._board.config.rollout.__dict__["start_timeout_s"] = 3.0  # noqa: SLF001  # the first two take long beside others
    version, began = 0, time.monotonic()
    while len(events.of("engine_lost")) < 2:
        version += 1
        fleet.publish(make_manifest(version))
        check(make_requests(4), list(fleet.generate(make_requests(4))), version)
        assert time.monotonic() - began < 60
    assert events.of("engine_lost")[1]["engine"] == "engine-2"
    assert "was not up for" in events.of("engine_lost")[1]["why"]
    assert version > 5


def test_a_run_is_over_when_its_last_engine_is(start: Any, events: Events, measure: Any) -> None:
    """An exhausted ring: the driver that waits for groups has the error at once."""
    stillborn = frozenset(f"engine-{number}" for number in range(1, 10))
    fleet = serve(start, 1, Model(service_s=0.05, stillborn=stillborn), max_restarts=1)
    stream = fleet.generate(make_requests(100))
    next(stream)
    os.kill(pids(fleet)[0], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(EngineError, match="no rollout engine is left"):
        list(stream)
    measure("an exhausted ring is an error", time.monotonic() - began)
    assert time.monotonic() - began < 30
