"""What the files for compose and SkyPilot run on two nodes, run on two hosts as it stands there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.helpers import hosts, jobs
from tests.helpers.hosts import PRIVATE, Host

OBSTACLE = hosts.find_obstacle()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"hosts cannot be played here: {OBSTACLE}"),
]
RECIPE = (*jobs.SMALL, "rollout.engines=1")
LOCAL = {"RAY_TMPDIR": f"{PRIVATE}/ray"}  # as in containers, each host has its own


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.complete(tmp_path_factory.mktemp("alone") / "run", *RECIPE)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Bring up hosts that know each other's names, as containers of one network do."""
    with hosts.up("learner", "rollout") as up:
        names = "\n".join(["127.0.0.1 localhost", *(f"{host.address} {name}" for name, host in up.items())])
        for host in up.values():
            host.run(["sh", "-ec", f"echo '{names}' > /etc/hosts"])
        yield up["learner"], up["rollout"]


def test_compose_runs_ranks_in_one_container_and_engines_in_the_other(alone: Path, tmp_path: Path) -> None:
    """Law 5. SIGTERM, as of `docker compose stop`, reaches the driver and saves a checkpoint."""
    run_dir = tmp_path / "run"
    given = {"ROLLCALL_IMAGE": "any", "RAY_AUTH_TOKEN": "2" * 64, "ARGS": f"{' '.join(RECIPE)} run_dir={run_dir}"}
    services = yaml.safe_load(fill_in((jobs.ROOT / "deploy/compose.yaml").read_text(), given))["services"]
    with two_hosts() as (learner, rollout):
        first = start(learner, services["learner"]["command"], run_dir, services["learner"]["environment"])
        jobs.wait_for("head", lambda: "Ray runtime started" in jobs.console(run_dir), first)
        start(rollout, services["rollout"]["command"], tmp_path / "rollout", services["rollout"]["environment"])
        finish(first, run_dir, learner, rollout)
    jobs.assert_same_weights(run_dir, alone)


def test_skypilot_runs_ranks_on_the_first_node_and_engines_on_the_next(alone: Path, tmp_path: Path) -> None:
    """Law 5. Both nodes start at once, and the second one's part ends well with the first's."""
    run_dir = tmp_path / "run"
    task = yaml.safe_load((jobs.ROOT / "deploy/skypilot/train.yaml").read_text())
    assert None not in {**task["envs"], "RUN": "given"}.values()
    with two_hosts() as (learner, rollout):
        given = {"ARGS": " ".join(RECIPE), "RUN": str(run_dir), "RAY_AUTH_TOKEN": "3" * 64}
        given["SKYPILOT_NODE_IPS"] = f"{learner.address}\n{rollout.address}"
        command = ["bash", "-c", task["run"]]
        second = start(rollout, command, tmp_path / "rollout", {**given, "SKYPILOT_NODE_RANK": "1"})
        first = start(learner, command, run_dir, {**given, "SKYPILOT_NODE_RANK": "0"})
        finish(first, run_dir, learner, rollout)
        assert second.wait(120) == 0
    jobs.assert_same_weights(run_dir, alone)


def fill_in(text: str, given: Mapping[str, str]) -> str:
    """Put variables into a compose file: `${NAME:-a default}`, and `${NAME:?what to do}` for one that must be given."""

    def choose(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        assert name in given or kind == "-"
        return given.get(name, rest)

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", choose, text)


def start(host: Host, command: list[str], run_dir: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a node's command, its console in `<run_dir>.log`."""
    return host.start(command, Path(f"{run_dir}.log"), {**environment, **LOCAL})


def finish(first: subprocess.Popen[str], run_dir: Path, learner: Host, rollout: Host) -> None:
    """Wait for the end of a run that has its ranks on one host and its engines on the other."""
    jobs.wait_for("step", lambda: jobs.rows(run_dir, "metrics.jsonl"), first)
    placed = [host.run(["ps", "-eo", "args"]) for host in (learner, rollout)]
    assert ["ray::LearnerRank" in names for names in placed] == [True, False]
    assert ["ray::RolloutEngine" in names for names in placed] == [False, True]
    assert jobs.finish(first, run_dir) == 0, jobs.console(run_dir)
