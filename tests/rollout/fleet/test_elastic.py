"""Engines that come and go while a run is under way, modelled: every request is answered once, by the same tokens."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common import placement
from common.placement import ask, release
from common.types import Group
from rollout.fleet import board, crew, finding, life
from rollout.fleet.fleet import RolloutFleet
from rollout.fleet.sizing import MOST_PATIENCE, Sizing, follow_wait_share
from rollout.spec import make_engine_request
from tests.faults.fleets import Events, check, pids
from tests.helpers.modelled import Model, ModelledEngine, make_config, make_manifest, make_requests

pytestmark = pytest.mark.usefixtures("ray_session")
Start = Callable[..., RolloutFleet]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def start(events: Events) -> Iterator[Start]:
    """Start a fleet of modelled engines, each in a place of its own, that serves version 0."""
    closing: list[Callable[[], None]] = []

    def begin(engines: Any, model: Model, *, run_folder: Path | None = None, **rollout: Any) -> RolloutFleet:
        config, spec = make_config(engines, **rollout), model
        places = [ask(make_engine_request(config)) for _ in range(config.rollout.min_engines)]
        closing.extend(lambda place=place: release(place) for place in places)  # type: ignore[misc]
        assert all(place.wait(30) for place in places)
        options: dict[str, Any] = {"on_event": events, "places": places, "run_folder": run_folder}
        fleet = RolloutFleet(config, spec, kind=ModelledEngine, **options)  # type: ignore[arg-type]
        closing.append(fleet.close)
        fleet.ready()
        fleet.publish(make_manifest(0))
        return fleet

    yield begin
    for close in reversed(closing):
        close()


def await_state(fleet: RolloutFleet, *, timeout_s: float = 30.0, **wanted: int) -> None:
    """Wait until so many engines are in these states."""
    deadline = time.monotonic() + timeout_s
    while True:
        state = fleet.describe()
        if all(getattr(state, name) == count for name, count in wanted.items()):
            return
        assert time.monotonic() < deadline, state
        time.sleep(0.02)


def sample(fleet: RolloutFleet, count: int = 40, version: int = 0) -> set[str | None]:
    """Sample a batch, check its answers, and return the engines that gave them."""
    found = list(fleet.generate(make_requests(count)))
    check(make_requests(count), found, version)
    return {one.engine_id for one in found if isinstance(one, Group)}


def list_places() -> int:
    """Count the places that are granted or waited for in this Ray."""
    from ray.util import placement_group_table

    return sum(row["state"] != "REMOVED" for row in placement_group_table().values())


def test_engines_that_join_take_work_and_those_that_leave_give_back_their_places(start: Start, events: Events) -> None:
    before = list_places()
    fleet = start(2, Model(service_s=0.01))
    sample(fleet)
    fleet.scale("4")
    await_state(fleet, serving=4)
    assert sample(fleet, 80) == {f"engine-{number}" for number in range(4)}
    fleet.publish(make_manifest(1))
    sample(fleet, 40, 1)
    fleet.scale("1")
    await_state(fleet, serving=1, draining=0)
    assert sample(fleet, 20, 1) == {"engine-0"}
    assert len(events.of("engine_retired")) == 3
    assert [row["engines"] for row in events.of("engines_reached")] == [4, 1]
    assert not events.of("engine_lost")
    deadline = time.monotonic() + 10
    while list_places() != before + 1:
        assert time.monotonic() < deadline, "a place was not given back"
        time.sleep(0.05)


@pytest.mark.parametrize("number", range(3))
def test_engines_leave_in_the_middle_of_a_batch(start: Start, events: Events, number: int) -> None:
    """They answer what they owe; nothing is lost, and nothing counts as a fault."""
    fleet = start(4, Model(service_s=0.01))
    requests = make_requests(200)
    stream = fleet.generate(requests)
    found = [next(stream) for _ in range(1 + 10 * number)]
    fleet.scale("1")
    found += stream
    check(requests, found, 0)
    await_state(fleet, serving=1, draining=0)
    assert not events.of("engine_lost")
    assert fleet.restarts == 0
    served = {one.engine_id for one in found if isinstance(one, Group)}
    assert len(served) > 1, "the others had left before the batch began"


def test_engines_join_in_the_middle_of_a_batch_of_old_weights(start: Start) -> None:
    """With a lag, batches of two versions wait. Who joins serves both, each under its own weights."""
    fleet = start(2, Model(service_s=0.03, load_s=0.05))
    first = fleet.ask(make_requests(200))
    fleet.publish(make_manifest(1))
    second = fleet.ask(make_requests(200))
    fleet.scale("4")
    old, new = list(fleet.take(first)), list(fleet.take(second))
    check(make_requests(200), old, 0)
    check(make_requests(200), new, 1)
    assert len({one.engine_id for one in [*old, *new] if isinstance(one, Group)}) > 2


def test_who_joins_loads_the_newest_weights_once(start: Start, events: Events) -> None:
    fleet = start(1, Model())
    for version in range(1, 6):
        fleet.publish(make_manifest(version))
    fleet.scale("2")
    await_state(fleet, serving=2)
    sample(fleet, 60, 5)
    deadline = time.monotonic() + 10
    while set(fleet.versions().values()) != {5}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_that_hangs_is_the_first_to_leave(start: Start, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stuck while the others are told to leave: the one that works stays, and the batch is answered."""
    monkeypatch.setattr(life, "FRESH_S", 3.0)
    monkeypatch.setattr(life, "LEAST_S", {"cpu": 3.0})
    monkeypatch.setattr("rollout.fleet.sizing.STUCK_S", 1.0)
    fleet = start(2, Model(service_s=0.02))
    requests = make_requests(200)
    stream = fleet.generate(requests)
    found = [next(stream)]
    os.kill(pids(fleet)[0], signal.SIGSTOP)
    stopped = time.monotonic()
    while time.monotonic() - stopped < 2.0:
        found.append(next(stream))
    fleet.scale("1")
    found += stream
    check(requests, found, 0)
    await_state(fleet, serving=1, draining=0)
    assert fleet.engines == ["engine-1"]
    assert [row["engine"] for row in events.of("engine_lost")] == ["engine-0"], "it hung"
    assert fleet.restarts == 0, "nobody wants another in its place"


def test_a_number_that_changes_twice_at_once_is_the_last_one(start: Start, events: Events) -> None:
    fleet = start(2, Model(start_s=0.5))
    for count in ("6", "1", "5", "3"):
        fleet.scale(count)
        time.sleep(0.25)
    await_state(fleet, serving=3, starting=0, waiting=0, draining=0)
    sample(fleet)
    assert [row["engines"] for row in events.of("engines_wanted")] == [6, 1, 5, 3]
    assert not events.of("engine_lost")


def test_engines_that_find_no_room_wait_and_are_called_off(start: Start, events: Events) -> None:
    before = list_places()
    fleet = start(2, Model(), cpus_per_engine=6)  # of 16 CPUs
    fleet.scale("4")
    await_state(fleet, serving=2, waiting=2)
    sample(fleet)
    fleet.ready()  # waits for nobody who has no place
    fleet.scale("2")
    await_state(fleet, serving=2, waiting=0, draining=0)
    deadline = time.monotonic() + 10
    while list_places() != before + 2:
        assert time.monotonic() < deadline, "a place is still asked for"
        time.sleep(0.05)
    fleet.scale("3")
    await_state(fleet, serving=2, waiting=1)
    fleet.scale("1")
    await_state(fleet, serving=1, waiting=0)
    sample(fleet)
    assert not events.of("engine_lost")


def test_room_that_comes_is_taken(start: Start) -> None:
    fleet = start(1, Model(), cpus_per_engine=6)
    other = ask(make_engine_request(make_config(1, cpus_per_engine=8)))
    assert other.wait(30)
    fleet.scale("2")
    await_state(fleet, serving=1, waiting=1)
    release(other)
    await_state(fleet, serving=2, waiting=0)


def test_an_engine_that_hangs_while_it_joins_is_given_up_and_the_others_go_on(start: Start, events: Events) -> None:
    fleet = start(1, Model(hangs=frozenset({"engine-1", "engine-2"})), start_timeout_s=60, max_restarts=1)
    patience = fleet._board.config.rollout.__dict__  # noqa: SLF001  # others than these two may take long
    patience["start_timeout_s"] = 2.0
    fleet.scale("2")
    deadline = time.monotonic() + 60
    while not events.of("engine_given_up"):
        sample(fleet, 10)
        assert time.monotonic() < deadline
    patience["start_timeout_s"] = 60.0
    sample(fleet)
    time.sleep(1.0)
    assert fleet.describe().starting == 0, "it was given up"
    fleet.scale("3")  # whoever asks again is heard
    await_state(fleet, serving=3)


def test_engines_that_cannot_be_built_where_they_join_do_not_end_the_run(start: Start, events: Events) -> None:
    """A host may lack what others have."""
    fleet = start(1, Model(raises=frozenset({f"engine-{number}" for number in range(1, 9)})), max_restarts=1)
    fleet.scale("2")
    deadline = time.monotonic() + 30
    while not events.of("engine_given_up"):
        sample(fleet, 10)
        assert time.monotonic() < deadline
    sample(fleet)


def test_one_that_leaves_and_is_killed_meanwhile_is_not_replaced(start: Start, events: Events) -> None:
    fleet = start(2, Model(service_s=0.05))
    requests = make_requests(40)
    stream = fleet.generate(requests)
    found = [next(stream)]
    fleet.scale("1")
    await_state(fleet, draining=1)
    (leaver,) = [one for one in fleet._board.members if one.state == "draining"]  # noqa: SLF001
    assert leaver.info is not None
    os.kill(leaver.info.pid, signal.SIGKILL)
    found += stream
    check(requests, found, 0)
    assert len(events.of("engine_lost")) == 1
    await_state(fleet, serving=1, starting=0, draining=0)


def test_engines_of_a_node_that_is_to_go_are_replaced_first(
    start: Start, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes are modelled: each engine has one of its own."""
    count = itertools.count()
    nodes: dict[Any, str] = {}
    real = placement.find_node

    def find_node(group: Any) -> str | None:
        if real(group) is not None:
            nodes.setdefault(group.id, f"node-{next(count)}")
        return nodes.get(group.id)

    notices: dict[str, float | None] = {}
    monkeypatch.setattr(finding, "find_node", find_node)
    monkeypatch.setattr(crew, "find_node", find_node)
    monkeypatch.setattr(crew, "list_draining_nodes", lambda: dict(notices))
    fleet = start(2, Model(service_s=0.01, start_s=0.5))
    leaver = fleet._board.members[0]  # noqa: SLF001
    assert leaver.node is not None
    notices[leaver.node] = 60.0
    lowest = 2
    while len(events.of("engine_retired")) < 1:
        sample(fleet, 20)
        lowest = min(lowest, fleet.describe().serving)
    assert lowest == 2, "it left before another was there"
    (told,) = events.of("node_draining")
    assert told["engines"] == [leaver.id]
    await_state(fleet, serving=2, draining=0)
    assert leaver.id not in fleet.engines
    assert not events.of("engine_lost")

    monkeypatch.setattr(crew, "LAST_S", 60.0)  # there is no time for another to come
    notices[fleet._board.members[0].node] = 59.0  # type: ignore[index]  # noqa: SLF001
    await_state(fleet, serving=1)
    sample(fleet)
    await_state(fleet, serving=2, draining=0)


def test_the_run_folder_carries_commands_and_what_came_of_them(start: Start, events: Events, tmp_path: Path) -> None:
    fleet = start({"min": 1, "max": 3}, Model(), run_folder=tmp_path)
    (tmp_path / "engines").write_text("2\n")
    await_state(fleet, serving=2)
    for text in ("9", "0", "many", "-1", "٣", "2.0", "1" * 500):
        (tmp_path / "engines").write_text(text)
        deadline = time.monotonic() + 30
        while fleet.describe().command != text[:100]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert fleet.describe().refused, text
    assert fleet.describe().wanted == 2
    (tmp_path / "engines").write_bytes(b"\xff\xfe\n")
    (tmp_path / "engines").write_text("auto")
    deadline = time.monotonic() + 30
    while json.loads((tmp_path / "engines.json").read_text())["command"] != "auto":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(20 + 2):
        fleet.observe(0.01)
    await_state(fleet, serving=1, draining=0)


def test_the_learner_that_waits_gets_engines_and_the_one_that_does_not_loses_them(start: Start) -> None:
    fleet = start({"min": 1, "max": 3}, Model())
    for _ in range(3):
        fleet.observe(0.6)
    await_state(fleet, serving=2)
    for _ in range(3):
        fleet.observe(0.6)
    await_state(fleet, serving=3)
    for _ in range(9):
        fleet.observe(0.6)
    assert fleet.describe().wanted == 3
    for _ in range(50):
        fleet.observe(0.0)
    await_state(fleet, serving=1, draining=0)


def begin_epoch(fleet: RolloutFleet) -> list[str]:
    engines = fleet.list_responsive()
    fleet.join({"rank_offset": 1}, engines, timeout_s=30)
    return engines


def test_one_that_hangs_unnoticed_is_in_no_epoch(start: Start, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """F17: nobody waits for it in a broadcast, and another comes in its place."""
    monkeypatch.setattr(board, "PING_S", 1.5)
    fleet = start(3, Model())
    os.kill(pids(fleet)[1], signal.SIGSTOP)
    assert begin_epoch(fleet) == ["engine-0", "engine-2"]
    assert fleet.broadcast(make_manifest(1, by_nccl=True), lambda: True)
    while not events.of("engine_lost"):
        time.sleep(0.02)
    assert "gave no sign of life" in events.of("engine_lost")[0]["why"]
    await_state(fleet, serving=3)
    assert begin_epoch(fleet) == ["engine-0", "engine-3", "engine-2"]
    assert fleet.broadcast(make_manifest(2, by_nccl=True), lambda: True)
    deadline = time.monotonic() + 10
    while set(fleet.versions().values()) != {2}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_engines_that_wait_in_a_broadcast_are_given_up_and_the_others_get_bytes(start: Start, events: Events) -> None:
    fleet = start(3, Model(stuck=frozenset({"engine-1"})))
    begin_epoch(fleet)
    assert not fleet.broadcast(make_manifest(1, by_nccl=True), lambda: False)
    fleet.publish(make_manifest(1))
    sample(fleet, 20, 1)
    await_state(fleet, serving=3)
    assert "called off" in next(row["why"] for row in events.of("engine_lost") if row["engine"] == "engine-1")
    assert begin_epoch(fleet)[1] != "engine-1"
    assert fleet.broadcast(make_manifest(2, by_nccl=True), lambda: True)
    sample(fleet, 20, 2)


def test_who_joins_and_who_leaves_between_two_broadcasts(start: Start, events: Events) -> None:
    """Those that came later get the weights as bytes; the next epoch has them."""
    fleet = start(1, Model(service_s=0.01))
    fleet.copy_of_weights = lambda: make_manifest(1)
    assert begin_epoch(fleet) == ["engine-0"]
    assert fleet.broadcast(make_manifest(1, by_nccl=True), lambda: True)
    fleet.scale("3")
    await_state(fleet, serving=3)
    while len(sample(fleet, 60, 1)) < 3:
        pass
    fleet.scale("2")
    await_state(fleet, serving=2, draining=0)
    assert begin_epoch(fleet) == ["engine-0", "engine-1"]
    assert fleet.broadcast(make_manifest(2, by_nccl=True), lambda: True)
    assert len(sample(fleet, 60, 2)) == 2
    assert not events.of("engine_lost")


def walk(start: Sizing, shares: list[float], least: int = 1, most: int = 8) -> Sizing:
    for share in shares:
        start = follow_wait_share(start, share, least=least, most=most)
    return start


@pytest.mark.parametrize(
    ("start", "shares", "wanted"),
    [
        (1, [0.6] * 2, 1),  # two steps may be an accident
        (1, [0.6] * 3, 2),
        (1, [0.6, 0.6, 0.1, 0.6, 0.6], 1),
        (2, [0.6] * 3, 3),
        (3, [0.6] * 3, 5),
        (5, [0.6] * 3, 8),
        (8, [0.9] * 100, 8),
        (3, [0.25] * 100, 3),  # the bounds themselves change nothing
        (3, [0.05] * 100, 3),
        (3, [0.0] * 19, 3),
        (3, [0.0] * 20, 2),
        (3, [0.0] * 40, 1),
        (1, [0.0] * 100, 1),
        (3, ([0.0] * 19 + [0.1]) * 5, 3),
    ],
)
def test_the_wait_share_decides(start: int, shares: list[float], wanted: int) -> None:
    assert walk(Sizing(start), shares).wanted == wanted


def test_a_number_that_swings_comes_to_rest() -> None:
    """Two engines are too many and one too few: the learner hardly waits, or for half of its time."""
    sizing, changes = Sizing(2), []
    for step in range(4000):
        before, sizing = sizing, follow_wait_share(sizing, 0.0 if sizing.wanted == 2 else 0.5, least=1, most=8)
        if sizing.wanted != before.wanted:
            changes.append(step)
    assert sizing.patience == MOST_PATIENCE
    assert len(changes) < 24
    alone = sum(later - earlier for earlier, later in zip(changes[::2], changes[1::2], strict=False))
    assert alone < 0.02 * 4000
