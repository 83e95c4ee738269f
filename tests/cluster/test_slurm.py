"""The script of `deploy/slurm/` on a real Slurm of two nodes: a job that loses its nodes in mid-run is done again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import jobs, slurm
from tests.helpers.slurm import Slurm

OBSTACLE = slurm.find_obstacle()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.alone,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"no Slurm of two nodes here: {OBSTACLE}"),
]
RECIPE = (*jobs.SMALL, "steps=40", "checkpoint.every=100", "rollout.engines=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm.start_slurm(tmp_path_factory.mktemp("slurm") / "slurm") as cluster:
        yield cluster


def test_a_preempted_job_goes_on_and_ends_with_the_weights_of_one_left_alone(cluster: Slurm, tmp_path: Path) -> None:
    """Law 5. Ranks are on one node and engines on the other. Another job takes both in mid-run.

    Slurm sends SIGTERM to all processes of both nodes.
    """
    run_dir = tmp_path / "run"
    log = Path(f"{run_dir}.log")
    job = cluster.submit(log, *RECIPE, f"run_dir={run_dir}")
    cluster.wait_for("step 5", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= 5, job=job, log=log)
    urgent = cluster.say("sbatch", "--parsable", "--nodes=2", "--partition=urgent", "--output=/dev/null", "--wrap=true")
    cluster.wait_for("preemption", lambda: cluster.look(job)["Restarts"] == "1", job=job, log=log)
    assert cluster.wait_for_end(job) == "COMPLETED", log.read_text()
    assert cluster.look(urgent.strip())["JobState"] == "COMPLETED"
    jobs.assert_same_weights(run_dir, jobs.complete(tmp_path / "alone", *RECIPE))

    console = log.read_text()
    events = jobs.rows(run_dir, "events.jsonl")
    (saved, last) = [row["step"] for row in events if row["kind"] == "checkpoint"]
    assert 5 <= saved < last == 40
    assert f"going on from step {saved} " in console
    assert not (violations := jobs.audit(run_dir)), violations
    assert {row["kind"] for row in events} & {"engine_lost", "rank_lost"} == set(), "Ray lived while the driver saved"


def test_a_job_asked_before_it_has_begun_is_done_again_and_one_told_to_end_is_not(
    cluster: Slurm, tmp_path: Path
) -> None:
    log = tmp_path / "run.log"
    job = cluster.submit(log, *RECIPE, f"run_dir={tmp_path / 'run'}")
    cluster.wait_for("start", lambda: "On head node" in _read(log), job=job, log=log)
    cluster.say("scancel", "--batch", "--signal=USR1", job)  # as by --signal, before the time is up
    cluster.wait_for("requeue", lambda: cluster.look(job)["Restarts"] == "1", job=job, log=log)
    cluster.wait_for("second start", lambda: _read(log).count("On head node") == 2, job=job, log=log)
    cluster.say("scancel", "--batch", "--signal=TERM", job)
    assert cluster.wait_for_end(job) == "FAILED", log.read_text()
    assert cluster.look(job)["Restarts"] == "1"


def test_nodes_that_leave_no_place_for_engines_are_refused(cluster: Slurm, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    job = cluster.submit(log, *RECIPE, f"run_dir={tmp_path / 'run'}", environment={"LEARNER_NODES": "2"})
    assert cluster.wait_for_end(job) == "FAILED"
    assert cluster.look(job)["ExitCode"] == "2:0"
    assert "error: LEARNER_NODES=2" in log.read_text()


def _read(log: Path) -> str:
    return log.read_text() if log.exists() else ""
