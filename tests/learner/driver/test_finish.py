"""However a run ends, its page is written; and a page that fails changes nothing but a line and an event."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.config.schema import Config
from learner.driver.finish import Finish
from learner.report import write as report
from learner.storage.run_folder import RunFolder
from learner.tracking.console import LineConsole
from learner.tracking.tracker import Tracker
from tests.helpers.fake_run import record, scored

CONFIG = Config(steps=6, name="digits")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.open(CONFIG.model_copy(update={"run_dir": tmp_path / "run"}), now=datetime.now(UTC))
    folder.begin(CONFIG)
    return folder


def ended(folder: RunFolder, error: BaseException | None = None) -> tuple[list[str], dict[str, Any]]:
    """A run of two steps that ends by `error`: its console, its summary."""
    out = io.StringIO()
    tracker = Tracker(folder, CONFIG, LineConsole(CONFIG, out))
    finish = Finish(tracker=tracker, folder=folder, config=CONFIG, started=0.0, version=2)
    for step in range(2):
        tracker.samples(step, [scored()], 1)
        tracker.write(record(step))
    if error is None:
        with finish:
            pass
    else:
        with pytest.raises(type(error)), finish:
            raise error
    return out.getvalue().splitlines(), json.loads((folder.path / "summary.json").read_text())


def read_events(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "finished"), (KeyboardInterrupt(), "interrupted"), (ValueError("no"), "failed")]
)
def test_a_run_ends_with_its_report(folder: RunFolder, error: BaseException | None, outcome: str) -> None:
    console, summary = ended(folder, error)
    assert summary["outcome"] == outcome
    cause = summary["cause"]
    assert (cause and cause["ring"], cause and cause["error"]) == {
        "finished": (None, None),
        "interrupted": ("user", "Ctrl-C"),
        "failed": ("driver", "ValueError: no"),
    }[outcome]
    (end,) = (row for row in read_events(folder) if row["kind"] == "end")
    assert (end["outcome"], {key: end.get(key) for key in cause or {}}) == (outcome, cause or {})
    assert ("trace" in end) == (outcome == "failed")
    page = (folder.path / "report.html").read_text()
    assert f'">{outcome}</span>' in page and "2 of 6" in page and "<svg" in page
    assert f"  report        {folder.show('report.html')}" in console
    assert console[-1] == f"run folder: {folder.address}"


def test_a_report_that_fails_is_named_and_the_run_is_finished_all_the_same(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Path:
        raise ZeroDivisionError("of the report")

    monkeypatch.setattr(report, "write_report", fail)
    (folder.path / "report.html").write_text("of an earlier start")
    console, summary = ended(folder)
    assert summary["outcome"] == "finished"
    assert "event report_failed why=ZeroDivisionError: of the report" in console
    assert "  report        not written" in console
    assert read_events(folder)[-1]["kind"] == "report_failed"
