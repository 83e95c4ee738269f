"""What one host says of the run folder, its neighbours and its builds; `tests/cluster/` asks whole clusters."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.storage.bucket import BucketFolder
from common.storage.output import Place
from learner.driver.hosts import HostReport, HostTask, look
from tests.helpers.s3 import S3Server


def ask(folder: Place | None, neighbours: dict[str, tuple[str, int]] | None = None) -> HostReport:
    return look(HostTask(folder=folder, secret="secret", neighbours=neighbours or {}), "cpu")


def test_a_shared_folder_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / ".shared-secret").write_text("secret")
    report = ask(tmp_path)
    assert report.folder_fault is None
    assert report.wrote
    assert (tmp_path / f".shared-secret-{socket.gethostname()}").read_text() == "secret"


@pytest.mark.parametrize(("content", "fault"), [(None, "another folder"), ("other", "another folder")])
def test_another_folder_under_the_same_path_is_told(tmp_path: Path, content: str | None, fault: str) -> None:
    if content:
        (tmp_path / ".shared-secret").write_text(content)
    report = ask(tmp_path)
    assert fault in str(report.folder_fault)
    assert not report.wrote


def test_no_folder_is_told_and_none_asked_for_is_no_fault(tmp_path: Path) -> None:
    assert ask(tmp_path / "run").folder_fault == "there is no such folder"
    assert ask(None).folder_fault is None
    assert not ask(None).wrote


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A folder in the place of the mark stands for a disk that takes no bytes; root may write everywhere."""
    (tmp_path / ".shared-secret").write_text("secret")
    (tmp_path / f".shared-secret-{socket.gethostname()}").mkdir()
    assert "cannot be written: Is a directory" in str(ask(tmp_path).folder_fault)


@pytest.mark.slow
def test_a_bucket_is_tried_on_every_host(s3: S3Server) -> None:
    assert ask(s3.place("hosts/run")).folder_fault is None
    assert s3.names("hosts") == []
    fault = ask(BucketFolder.parse(str(s3.place("hosts/run")).replace("//runs/", "//nobucket/"))).folder_fault
    assert "NO_SUCH_BUCKET" in str(fault) and "s3://nobucket/hosts/run" in str(fault)


def test_a_neighbour_that_does_not_answer_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = server.getsockname()
        assert ask(None, {"here": there}).no_route_to == ()
    assert ask(None, {"gone": there}).no_route_to == ("gone",)


def test_builds_for_another_device_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: str) -> None:
        raise ConfigError(f"torch is no build for {device}", got="+cpu", remedy="install the other")

    monkeypatch.setattr("learner.driver.hosts.require_torch_build", refuse)
    assert str(ask(None).setup_fault).startswith("torch is no build for cpu")
