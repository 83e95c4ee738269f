"""Faults of the driver's own host: its wall clock jumps, its disk hangs while events are written, its store spills."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.config.schema import Config, DataConfig, RewardConfig
from learner.storage import disk
from learner.storage.run_folder import RunFolder
from learner.tracking.console import LineConsole
from learner.tracking.tracker import Tracker
from rollout.fleet.fleet import RolloutFleet
from rollout.reward_pool import RewardPool
from tests.faults.fleets import Events, check, pids, serve
from tests.helpers.modelled import (
    Model,
    ModelledEngine,
    make_config,
    make_jumping_clock,
    make_manifest,
    make_requests,
)
from tests.helpers.reward_parts import group, prompt

ROOT = Path(__file__).parents[2]
ON_RAY = pytest.mark.usefixtures("ray_session")


@ON_RAY
def test_a_wall_clock_that_jumps_by_hours_matters_to_nobody(
    start: Any, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the driver and in every engine, at every look; an engine that dies meanwhile is replaced as ever."""
    fleet = serve(start, 2, Model(service_s=0.02, clock_jumps=True), step_timeout_s=5.0)
    monkeypatch.setattr(time, "time", make_jumping_clock())
    assert abs(time.time() - time.time()) > 3600
    requests = make_requests(100)
    stream = fleet.generate(requests)
    found = [next(stream)]
    victim = pids(fleet)[0]
    os.kill(victim, signal.SIGKILL)
    found += stream
    check(requests, found, 0)
    assert len(events.wait("engine_lost")) == 1

    pool = RewardPool(RewardConfig(timeout_s=5.0), DataConfig())
    prompts = {f"train/{number}": prompt(number, f"class {number}") for number in range(20)}
    groups = [group(number, (f"class {number}", "no")) for number in range(20)]
    try:
        assert len(list(pool.score(prompts, groups))) == 20
        assert pool.restarts == 0
    finally:
        pool.close()


# What reads the wall clock, and may: for people, in names and in records. No deadline is among them.
WALL_CLOCK = {
    "common/placement.py": {"time"},  # Ray says by it when a node is to go
    "learner/audit/process_rules.py": {"create_time"},
    "learner/driver/preflight/start.py": {"now"},  # in the name of a run folder
    "learner/driver/telemetry/driver_log.py": {"time"},  # of a line
    "learner/driver/telemetry/run_metrics.py": {"time"},  # when a checkpoint was written, as Prometheus counts
    "learner/driver/telemetry/worker_logs.py": {"st_mtime"},  # which log is the newest
    "learner/evaluate.py": {"now"},
    "learner/guard/record.py": {"time"},  # beside the monotonic clock
    "learner/report/write.py": {"now"},  # printed on the page
    "learner/storage/mirror.py": {"st_mtime_ns"},  # only whether it changed
    "learner/tracking/services/mlflow.py": {"time"},  # of a number
    "learner/tracking/tensorboard.py": {"time"},
    "learner/tracking/tracker.py": {"time"},
    "rollout/command_file.py": {"time"},  # what is older than a start is not its answer
}
READINGS = {"utcnow", "st_mtime", "st_mtime_ns", "st_ctime", "create_time", "localtime", "gmtime"}
OF_MODULES = {"time": {"time", "time_ns", "ctime"}, "datetime": {"now", "today"}, "date": {"today"}}


def test_no_deadline_is_by_the_wall_clock() -> None:
    found: dict[str, set[str]] = {}
    for package in ("common", "rollout", "learner"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Attribute):
                    continue
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                if node.attr in READINGS | OF_MODULES.get(owner, set()):
                    found.setdefault(str(path.relative_to(ROOT)), set()).add(node.attr)
    assert found == WALL_CLOCK


@ON_RAY
def test_a_tracker_whose_disk_hangs_condemns_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first event waits in the fleet's own thread, for longer than any engine may be silent."""
    monkeypatch.setattr(disk, "PATIENCE_S", 3.0)
    monkeypatch.chdir(tmp_path)
    config = Config(steps=6)
    folder = RunFolder.open(config, now=datetime.now(UTC))
    tracker = Tracker(folder, config, LineConsole(config, sys.stderr))
    events = Events()

    def note(kind: str, **fields: Any) -> None:
        tracker.event(kind, **fields)
        events(kind, **fields)

    spec: Any = Model(service_s=0.02)
    fleet = RolloutFleet(make_config(2, step_timeout_s=1.0), spec, on_event=note, kind=ModelledEngine)
    try:
        fleet.ready()
        fleet.publish(make_manifest(0))
        (folder.path / "events.jsonl").unlink()
        os.mkfifo(folder.path / "events.jsonl")  # whoever opens it to write waits for a reader
        requests = make_requests(200)
        stream = fleet.generate(requests)
        found = [next(stream)]
        began = time.monotonic()
        os.kill(pids(fleet)[0], signal.SIGKILL)
        found += stream
        check(requests, found, 0)
        assert time.monotonic() - began > 2.5, "the disk held it up"
        assert tracker.failures == 1
        assert len(events.of("engine_lost")) == 1, "the one that was killed"
    finally:
        fleet.close()
        os.close(os.open(folder.path / "events.jsonl", os.O_RDONLY | os.O_NONBLOCK))


@pytest.mark.engine
def test_weights_that_spill_to_disk_reach_every_batch(tmp_path: Path) -> None:
    """Batches of seven versions wait at once, whose weights are more than the object store holds."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.spill"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 40_000_000, "bytes that were spilled"
