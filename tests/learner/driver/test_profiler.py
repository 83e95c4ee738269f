"""Which steps are recorded, what is written, and that a fault of a profile is not the run's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from common.config.schema import Config
from common.errors import EngineError
from common.recorder import Recorder
from common.storage.output import Place, WriteReport, WrittenFile, find_unseen
from learner.driver.profiler import Profiler


class Processes:
    """Notes what it is told."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.told: list[str] = []
        self.reports: list[WriteReport] = []
        self._fault = fault

    def start_profile(self) -> None:
        self.told.append("start")

    def stop_profile(self, place: Place) -> list[WriteReport]:
        self.told.append("stop")
        if self._fault:
            raise self._fault
        return self.reports


@pytest.fixture(autouse=True)
def timelines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those Ray was asked for."""
    import ray

    asked: list[str] = []
    monkeypatch.setattr(ray, "timeline", asked.append)
    return asked


def settings(*steps: int) -> Config:
    return Config.model_validate({"tracking": {"profile_steps": steps or None}})


def told(config: Config, steps: range, folder: Path) -> list[str]:
    """What the processes hear, step by step and in the end."""
    processes = Processes()
    profiler = Profiler(config, folder, [processes])
    for step in steps:
        processes.told.append(f"{step}")
        profiler.begin_step(step)
    processes.told.append("end")
    profiler.stop()
    return processes.told


def test_the_steps_asked_for_are_recorded(tmp_path: Path, timelines: list[str]) -> None:
    folder = tmp_path / "profile"
    assert told(settings(3, 5), range(7), folder) == ["0", "1", "2", "3", "start", "4", "5", "stop", "6", "end"]
    assert timelines == [str(folder / "ray-timeline.json")]


def test_a_run_that_ends_within_the_steps_is_recorded_to_its_end(tmp_path: Path) -> None:
    assert told(settings(1, 9), range(3), tmp_path / "profile") == ["0", "1", "start", "2", "end", "stop"]


def test_a_run_resumed_within_the_steps_records_the_rest(tmp_path: Path) -> None:
    assert told(settings(1, 4), range(3, 5), tmp_path / "profile") == ["3", "start", "4", "stop", "end"]


def test_nothing_is_written_when_nobody_asks(tmp_path: Path, timelines: list[str]) -> None:
    assert told(settings(), range(3), tmp_path / "profile") == ["0", "1", "2", "end"]
    assert told(settings(7, 9), range(3), tmp_path / "profile") == ["0", "1", "2", "end"]
    assert not timelines
    assert not (tmp_path / "profile").exists()


def test_a_lost_engine_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost, other = Processes(EngineError("an engine is lost", got="nothing", remedy="none")), Processes()
    profiler = Profiler(settings(0, 1), tmp_path / "profile", [lost, other])
    profiler.begin_step(0)
    profiler.begin_step(1)
    assert other.told == ["start", "stop"]
    assert "an engine is lost" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trace_on_another_hosts_disk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded, trace = Processes(), WrittenFile(name="rank-1.json.gz", bytes=9, sha256="")
    recorded.reports = [WriteReport(by="rank-1", host="far", files=(trace,))]
    profiler = Profiler(settings(0, 1), tmp_path, [recorded])
    profiler.begin_step(0)
    profiler.stop()
    assert "rank-1 on far wrote rank-1.json.gz" in capsys.readouterr().err


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    def full(path: str) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(ray, "timeline", full)
    assert told(settings(1, 2), range(4), tmp_path / "profile")[-1] == "end"
    assert "No space left" in capsys.readouterr().err


def test_a_recorder_writes_a_trace_and_a_table(tmp_path: Path) -> None:
    import torch

    recorder = Recorder()
    assert recorder.stop(tmp_path, "never").files == ()
    recorder.start()
    torch.ones(8, 8) @ torch.ones(8, 8)
    report = recorder.stop(tmp_path, "rank-0")
    assert find_unseen(tmp_path, [report], hashed=True) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0.json.gz", "rank-0.txt"]
    trace = json.loads(gzip.decompress((tmp_path / "rank-0.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    assert "aten::mm" in (tmp_path / "rank-0.txt").read_text()
