"""A run on a cluster with Ray's metrics agent, scraped by a real Prometheus: what is asked of it has an answer."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.telemetry.catalogue import EXPORTED, METRICS
from learner.tracking.records import STAGES
from tests.helpers import jobs, warm_python
from tests.helpers.ports import free_port
from tests.helpers.prometheus import PROGRAM, Prometheus, list_panels, list_rules, list_selectors, serve

pytestmark = [
    pytest.mark.engine,
    pytest.mark.alone,
    pytest.mark.skipif(PROGRAM is None, reason="no Prometheus: install Debian's `prometheus`"),
]
NAME = "observed"


@contextmanager
def start_ray() -> Iterator[tuple[str, Path]]:
    """A cluster as `ray start` makes it, whose processes report every second. Its address, and the file of targets."""
    environment = {**warm_python.cold(os.environ), "RAY_metrics_report_interval_ms": "1000"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="rc", dir="/tmp", ignore_cleanup_errors=True) as folder:
        names = ("ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "dashboard-port")
        ports = " ".join(f"--{name}={free_port()}" for name in names)
        words = f"ray start --head --block --port={port} {ports} --node-ip-address=127.0.0.1 --num-cpus=4"
        words += f" --temp-dir={folder} --disable-usage-stats --object-store-memory=200000000"
        with Path(folder, "console").open("w") as console:
            ray = subprocess.Popen(words.split(), env=environment, stdout=console, stderr=subprocess.STDOUT)
        targets = Path(folder, "prom_metrics_service_discovery.json")
        try:
            jobs.wait_for("targets", targets.exists, ray, timeout_s=120)
            yield f"127.0.0.1:{port}", targets
        finally:
            ray.terminate()  # not `ray stop`: that ends every Ray of this user
            ray.wait(60)


def list_questions() -> list[str]:
    """Every query of a panel and of a recording rule, and every series that an alert looks at."""
    panels = [query.replace("$run", NAME) for _, query in list_panels()]
    recorded = [rule["record"] for rule in list_rules() if "record" in rule]
    alerts = [rule["expr"] for rule in list_rules() if "alert" in rule]
    series = [selector.text for alert in alerts for selector in list_selectors(alert)]
    return list(dict.fromkeys([*panels, *recorded, *series]))


def find_unanswered(prometheus: Prometheus) -> list[str]:
    """The questions to which no series with a number answers."""
    return [
        question
        for question in list_questions()
        if not any(labels["run"] == NAME and not math.isnan(value) for labels, value in prometheus.query(question))
    ]


def read_last(prometheus: Prometheus, name: str, **labels: str) -> float:
    """The last value of a figure, of the one series that has it."""
    matchers = ",".join(f'{key}="{value}"' for key, value in {"run": NAME, **labels}.items())
    ((_, value),) = prometheus.query(f"last_over_time({EXPORTED}{name}{{{matchers}}}[10m])")
    return value


def await_series(prometheus: Prometheus, query: str, process: subprocess.Popen[Any]) -> None:
    jobs.wait_for(query, lambda: prometheus.query(query), process, timeout_s=120)


def test_every_panel_and_every_alert_finds_its_series(tmp_path: Path) -> None:
    """An engine crashes on the way: it is counted as lost, and its last words are in the run folder."""
    run_dir, scratch = tmp_path / NAME, tmp_path / "prometheus"
    scratch.mkdir()
    with start_ray() as (address, targets), serve(scratch, targets) as prometheus:
        words = ("steps=5000", "checkpoint.every=5", "evaluation.every=0", "tracking.samples_every=0")
        process = jobs.start(run_dir, f"cluster.address={address}", *words, "checkpoint.export=false")
        jobs.wait_for("step 1", lambda: jobs.rows(run_dir, "metrics.jsonl"), process)
        try:
            jobs.wait_for("answers", lambda: not find_unanswered(prometheus), process, timeout_s=90)
        except AssertionError:
            assert find_unanswered(prometheus) == []

        crashed = next(row for row in jobs.rows(run_dir, "events.jsonl") if row["kind"] == "engine_up")
        os.kill(crashed["pid"], signal.SIGSEGV)
        await_series(prometheus, f'{EXPORTED}losses{{of="engine"}} == 1', process)
        await_series(prometheus, f'{EXPORTED}engines{{state="serving"}} == 1', process)
        found = {labels["__name__"]: labels for labels, _ in prometheus.query('{__name__=~"ray_rollcall_.*"}')}
        assert found.keys() == {EXPORTED + name for name in METRICS}
        for name, metric in METRICS.items():
            assert {"run", *metric.labels} <= found[EXPORTED + name].keys()
        assert [one for one in prometheus.get("alerts")["alerts"] if one["state"] == "firing"] == []

        process.send_signal(signal.SIGTERM)
        assert jobs.finish(process, run_dir) == 128 + signal.SIGTERM, jobs.console(run_dir)
        ended = f"last_over_time({EXPORTED}run_open[10m]) == 0"
        jobs.wait_for(ended, lambda: prometheus.query(ended), prometheus.process, timeout_s=60)
        assert_same_figures(prometheus, run_dir)
    assert_logs(run_dir, crashed)


def assert_same_figures(prometheus: Prometheus, run_dir: Path) -> None:
    """Prometheus ends with the figures of the run's own files."""
    summary, row = json.loads((run_dir / "summary.json").read_text()), jobs.rows(run_dir, "metrics.jsonl")[-1]
    assert read_last(prometheus, "steps") == summary["steps"] == row["step"] + 1
    assert read_last(prometheus, "reward_mean") == pytest.approx(row["reward"])
    assert read_last(prometheus, "groups", what="trained") == row["groups_trained"]
    seconds = [read_last(prometheus, "phase_seconds", phase=phase) for phase in STAGES]
    assert sum(seconds) == pytest.approx(row["step_seconds"], rel=0.01)
    assert read_last(prometheus, "checkpoint_failures") == 0


def assert_logs(run_dir: Path, crashed: dict[str, Any]) -> None:
    """Every actor has a log in the run folder that says who and when; the crashed engine's has its last words."""
    (last_words,) = (run_dir / "logs").glob(f"{crashed['engine']}-*-{crashed['pid']}.log")
    assert "Segfault" in last_words.read_text()
    actors = set()
    for path in (run_dir / "logs").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert row["run"] == NAME
            assert {"time", "level", "step", "message"} <= row.keys()
            actors.add(row["actor"])
    assert actors == {"driver", "engine-0", "engine-1", "rank-0", "reward-0"}
