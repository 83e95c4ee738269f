"""What is written of a run whose driver can no longer write: in its folder, or its bucket."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.config.schema import Config, config_hash
from learner.guard.parent import record_in_time, write_loss
from learner.report.data import read_run
from learner.storage.run_folder import RunFolder
from learner.tracking.console import LineConsole
from learner.tracking.tracker import Tracker
from tests.helpers.fake_run import record
from tests.helpers.s3 import S3Server

CONFIG = Config(steps=6, name="digits")
CAUSE = {"ring": "driver", "actor": "driver (pid 17)", "node": "host-1", "error": "killed by SIGKILL"}


def begin(place: str) -> RunFolder:
    """A run of two steps whose driver is gone."""
    folder = RunFolder.open(CONFIG.model_copy(update={"run_dir": place}), now=datetime.now(UTC))
    folder.begin(CONFIG)
    tracker = Tracker(folder, CONFIG, LineConsole(CONFIG, io.StringIO()))
    tracker.phase("everything up", 12.5)
    tracker.evaluation(0, {"accuracy": 0.25, "invalid_rate": 0.0, "per_class": {"one": [1, 4]}})
    for step in range(2):
        tracker.write(record(step))
    return folder


def lose(folder: RunFolder) -> None:
    facts = {"folder": str(folder.path), "place": folder.shown}
    record_in_time(facts, write_loss, place=folder.shown, **CAUSE, seconds=60.0)


def test_the_folder_says_what_was_lost(tmp_path: Path) -> None:
    folder = begin(str(tmp_path / "run"))
    lose(folder)
    summary = json.loads((folder.path / "summary.json").read_text())
    assert (summary["outcome"], summary["cause"], summary["steps"]) == ("lost", CAUSE, 2)
    assert (summary["accuracy_before"], summary["startup_seconds"], summary["wall_seconds"]) == (0.25, 12.5, 60.0)
    assert summary["config_hash"] == config_hash(CONFIG)
    end = json.loads((folder.path / "events.jsonl").read_text().splitlines()[-1])
    assert {"kind": "end", "outcome": "lost", **CAUSE}.items() <= end.items()
    folder.close()
    assert read_run(folder.path, "run").outcome == "lost"


@pytest.mark.slow
def test_the_bucket_says_so_too(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = s3.place("lost/run")
    folder = begin(str(place))
    lose(folder)
    assert json.loads(place.read("summary.json"))["outcome"] == "lost"
    assert b'"kind": "end"' in place.read("events.jsonl")
    folder.close()


def test_a_damaged_folder_is_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = begin(str(tmp_path / "run"))
    (folder.path / "config.yaml").write_text("{")
    lose(folder)
    assert f"warning: the end of the run is not in {folder.path}: " in capfd.readouterr().err
    assert json.loads((folder.path / "events.jsonl").read_text().splitlines()[-1])["outcome"] == "lost"
    folder.close()
