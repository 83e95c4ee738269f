"""`python -m tests.faults.soak --minutes 10`: a long run under faults, every few seconds another one.

The loop, the fleet, the reward pool, the ledger, the tracker and the books are the real ones, on a real Ray. Engines
are modelled, and so is the learner: it sleeps. A schedule of a random seed kills, stops and slows engines and reward
workers. The run is one process. Afterwards another one reads its folder, audits it and prints the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import ray

from common.command import Grace
from common.config.schema import Config
from common.data.feed import PromptFeed
from common.data.stream import PromptStream
from common.types import StepResult, WeightManifest
from learner.audit.rules import find_violations
from learner.audit.run_record import RunRecord, read_record
from learner.driver.control.lookahead import Lookahead
from learner.driver.control.solve_rates import SolveRates
from learner.driver.control.steering import Steering
from learner.driver.ledger import Ledger
from learner.driver.run import Run
from learner.driver.weight_sync import WeightSync
from learner.main import train
from learner.storage.run_folder import RunFolder
from learner.tracking.console import LineConsole
from learner.tracking.tracker import Tracker
from rollout.fleet import life
from rollout.fleet.fleet import RolloutFleet
from rollout.reward_pool import RewardPool
from tests.faults.strikes import Memory, Strikes
from tests.helpers.modelled import Model, ModelledEngine, make_manifest
from tests.helpers.tiny import step_result
from tests.learner.trainer.test_offline_groups import prompt, row, source

ROOT = Path(__file__).parents[2]
SERVICE_S, LEARN_S, HANG_S = 0.02, 0.1, 3.0
ROWS = 2000
SETTINGS: Mapping[str, Any] = {
    "steps": 1_000_000,
    "seed": 7,
    "rollout": {
        "engines": 4,
        "max_lag": 1,
        "prompts_per_step": 32,
        "group_size": 4,
        "gpus_per_engine": 0,
        "cpus_per_engine": 0,
        "start_timeout_s": 60,
        "step_timeout_s": 20,
    },
    "reward": {"workers": 2, "timeout_s": 1.0, "cpus_per_worker": 0.1},
    "weights": {"timeout_s": 10},  # an engine may be stopped while it loads
    "learner": {"gpus_per_rank": 0},
    "tracking": {"samples_every": 0},
    "cluster": {"device": "cpu"},
}


class Over(Exception):  # noqa: N818
    """The time is up, between two steps."""


class SleepingLearner:
    """Publishes weights that follow from the version, and learns by waiting."""

    def publish(self, version: int) -> WeightManifest:
        return make_manifest(version, megabytes=0.2)

    def step(self, scored: Any, **_: Any) -> StepResult:
        time.sleep(LEARN_S)
        return step_result()

    def keep(self) -> None:
        """Copy nothing: nobody is lost here but engines and reward workers."""


def run_soak(folder: Path, seconds: float, every_s: float) -> None:
    """Run for so many seconds in this process, and leave a run folder with `soak.json` in it."""
    life.FRESH_S, life.LEAST_S = HANG_S, {"cpu": HANG_S}
    config = Config.model_validate({**SETTINGS, "run_dir": str(folder)})
    events: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="rc", dir="/tmp", ignore_cleanup_errors=True) as scratch,
        ExitStack() as parts,
    ):
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _temp_dir=scratch)
        parts.callback(ray.shutdown)
        opened = parts.enter_context(closing(RunFolder.open(config, now=datetime.now(UTC))))
        opened.begin(config)
        tracker = Tracker(opened, config, LineConsole(config, parts.enter_context(Path(os.devnull).open("w"))))

        def note(kind: str, **fields: Any) -> None:
            tracker.event(kind, **fields)
            events.append({"kind": kind, **fields})

        until = [float("inf")]
        run = make_run(config, tracker, note, until, parts)
        run.fleet.ready()
        run.publish(0)
        strikes, memory = Strikes(every_s, events), Memory()
        for helper in (strikes, memory):
            threading.Thread(target=helper.run, daemon=True).start()
            parts.callback(helper.over.set)
        began = time.monotonic()
        until[0] = began + seconds
        with suppress(Over):
            train(run)
        wall = time.monotonic() - began
        strikes.over.set()
        strikes.wake_all()
        memory.over.set()
        figures = {"wall": wall, "strikes": strikes.done, "growth": memory.growth(), "rss": max(memory.megabytes)}
        (folder / "soak.json").write_text(json.dumps(figures))
        tracker.event("end", outcome="interrupted")
        tracker.summary(
            outcome="interrupted", steps=run.version, wall_seconds=wall, startup_seconds=0, weights_version=run.version
        )


def make_run(config: Config, tracker: Tracker, note: Any, until: list[float], parts: ExitStack) -> Run:
    """Make a run whose engines and learner are modelled, and all else is real."""

    def begin_step(step: int) -> None:
        if time.monotonic() > until[0]:
            raise Over

    spec: Any = Model(service_s=SERVICE_S)
    fleet = parts.enter_context(closing(RolloutFleet(config, spec, on_event=note, kind=ModelledEngine)))
    rewards = parts.enter_context(closing(RewardPool(config.reward, config.data, on_event=note)))
    learner: Any = SleepingLearner()
    stream = PromptStream(
        source(*map(row, range(ROWS))), seed=config.seed, prompts_per_step=config.rollout.prompts_per_step
    )
    encoder: Any = SimpleNamespace(encode=prompt)
    nothing: Any = SimpleNamespace(failures=0, maybe_save=lambda *_, **__: False)
    return Run(
        inputs=cast("Any", SimpleNamespace(config=config, sets=[])),
        tracker=tracker,
        ledger=Ledger(on_event=note, max_drop_share=0.1),
        fleet=fleet,
        rewards=rewards,
        learner=learner,
        weight_sync=WeightSync(learner, fleet, nccl=False, on_event=note),
        probe=cast("Any", lambda version, prompts: None),
        feed=parts.enter_context(
            closing(PromptFeed(stream, encoder, ahead=config.rollout.prompts_per_step, timeout_s=30.0))
        ),
        offline=cast("Any", SimpleNamespace(divide=lambda prompts, step: (list(prompts), []), make_group=None)),
        vision_cache=None,
        checkpoints=nothing,
        profiler=cast("Any", SimpleNamespace(begin_step=begin_step)),
        grace=Grace(9.0),
        steering=Steering(config),
        solve_rates=SolveRates(config),
        lookahead=Lookahead(steps=config.steps, max_lag=config.rollout.max_lag),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a soak came to."""

    steps: int
    groups: int
    dropped: int
    strikes: Mapping[str, int]
    heals: Mapping[str, int]  # processes that came up in place of lost ones
    effective: float  # share of the time that the steps would have taken at their median pace
    growth: float  # MB of the driver, from the second fifth of the time to the last
    rss: float  # MB of the driver at most
    violations: tuple[str, ...]


def judge(record: RunRecord, figures: Mapping[str, Any]) -> Verdict:
    """Return what the folder of a soak says."""
    paces = [float(one["step_seconds"]) for one in record.metrics]
    kinds = Counter(str(one["kind"]) for one in record.events)
    names = {"engines": ("engine_up", "engine_lost"), "reward workers": ("reward_worker_up", "reward_worker_lost")}
    at_first = {"engines": record.config.rollout.min_engines, "reward workers": record.config.reward.workers}
    last = record.books[-1]
    return Verdict(
        steps=len(record.steps),
        groups=last.trained,
        dropped=last.dropped,
        strikes=figures["strikes"],
        heals={what: min(kinds[up] - at_first[what], kinds[lost]) for what, (up, lost) in names.items()},
        effective=len(paces) * median(paces) / figures["wall"],
        growth=figures["growth"],
        rss=figures["rss"],
        violations=tuple(find_violations(record)),
    )


def soak(folder: Path, seconds: float, every_s: float) -> Verdict:
    """Run a soak in a process of its own, and judge it."""
    words = ["-m", "tests.faults.soak", "--into", str(folder), "--minutes", str(seconds / 60), "--every", str(every_s)]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=seconds + 240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return judge(read_record(folder), json.loads((folder / "soak.json").read_text()))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two strikes")
    parser.add_argument("--into", type=Path, help="run in this process, into this folder, and judge nothing")
    words = parser.parse_args()
    if words.into:
        run_soak(words.into, words.minutes * 60, words.every)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        verdict = soak(Path(scratch) / "run", words.minutes * 60, words.every)
    for name in Verdict.__dataclass_fields__:
        value = getattr(verdict, name)
        print(f"{name:12} {value:.3f}" if isinstance(value, float) else f"{name:12} {value}")
    return int(bool(verdict.violations))


if __name__ == "__main__":
    sys.exit(main())
