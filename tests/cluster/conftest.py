"""Four hosts with a Ray cluster on them: a head without CPUs, two hosts for learner ranks, one for engines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import hosts, jobs
from tests.helpers.hosts import PRIVATE, Host

GCS, DASHBOARD = 6379, 8265
NAMES = ("head", "learner-0", "learner-1", "rollout-0")
# A learner host has room for one rank and one engine, the rollout host for two engines.
RECIPE = (
    *("steps=30", "rollout.prompts_per_step=4", "rollout.engines=2", "rollout.cpus_per_engine=0.4"),
    *("learner.ranks=2", "learner.cpus_per_rank=0.6", "checkpoint.every=10", "tracking.samples_every=0"),
)


@dataclass(slots=True, kw_only=True)
class Cluster:
    """A Ray cluster over several hosts."""

    hosts: Mapping[str, Host]
    logs: Path

    @property
    def head(self) -> Host:
        return self.hosts["head"]

    def start_ray(self) -> None:
        """Start Ray on every host; its label `role` is the host's name without the number."""
        for host in self.hosts.values():
            self._start_node(host)
        for host in self.hosts.values():
            jobs.wait_for(f"Ray on {host.name}", partial(self._is_up, host), self.head.init)

    def submit(self, *words: str, environment: Mapping[str, str] = {}) -> subprocess.Popen[str]:
        """Run `ray job submit` of a small run on the head; see `finish`. All of its processes get the environment."""
        submit = ["ray", "job", "submit", f"--address=http://{self.head.address}:{DASHBOARD}", "--working-dir", "."]
        submit += ["--runtime-env-json", json.dumps({"env_vars": dict(environment)})]
        command = [*submit, "--", "python", "-m", "learner.main", *jobs.SMALL, *RECIPE, *words]
        self.console.unlink(missing_ok=True)
        return self.head.start(command, self.console)

    def finish(self, job: subprocess.Popen[str], *, timeout_s: float = 600) -> str:
        """Return the console of a job that has ended."""
        job.wait(timeout_s)
        return self.console.read_text()

    def wait_for_step(self, run_dir: Path, step: int, job: subprocess.Popen[str]) -> None:
        """Wait until a run has done so many steps."""
        try:
            jobs.wait_for(f"step {step}", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= step, job)
        except AssertionError as error:
            raise AssertionError(self.console.read_text()) from error

    @property
    def console(self) -> Path:
        return self.logs / "job.log"

    def _start_node(self, host: Host) -> None:
        head = host is self.head
        where = f"--head --port={GCS} --temp-dir={PRIVATE}/ray" if head else f"--address={self.head.address}:{GCS}"
        if head:
            where += f" --dashboard-host={host.address} --dashboard-port={DASHBOARD}"
        # No GPU is there: what is claimed here is what a run for GPUs finds.
        has = "--num-cpus=0" if head else "--num-cpus=1 --num-gpus=1"
        words = f"ray start {where} {has} --node-ip-address={host.address} --labels=role={host.name.split('-')[0]}"
        words += " --object-store-memory=100000000 --disable-usage-stats --block"
        own = {} if head else {"XDG_CACHE_HOME": f"{PRIVATE}/cache"}  # the driver's host alone has the model
        host.start(words.split(), self.logs / f"{host.name}.log", own)

    def _is_up(self, host: Host) -> bool:
        log = self.logs / f"{host.name}.log"
        return log.exists() and "Ray runtime started" in log.read_text()


@contextmanager
def start_cluster(logs: Path, names: Sequence[str] = NAMES) -> Iterator[Cluster]:
    """Bring the hosts up, and Ray on them."""
    logs.mkdir()
    with hosts.up(*names) as up:
        cluster = Cluster(hosts=up, logs=logs)
        cluster.start_ray()
        yield cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for the tests that leave its hosts as they are."""
    with start_cluster(tmp_path_factory.mktemp("cluster") / "logs") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same run on this machine alone."""
    return jobs.complete(tmp_path_factory.mktemp("one") / "run", *RECIPE)
