"""Trackers of others, by their real clients: they get every number, hold no step up, and end nothing."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.config.schema import Config
from common.config.sections import TrackingConfig
from common.errors import ConfigError
from learner.driver.preflight.services import check_services
from learner.storage.files import read_jsonl
from learner.storage.run_folder import RunFolder
from learner.tracking.console import LineConsole
from learner.tracking.services import courier
from learner.tracking.tracker import Tracker
from tests.helpers.fake_run import record, scored

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # clients warn of what they please
SECRET = "hush-hush-0123456789"
RESULT = {"accuracy": 0.5, "invalid_rate": 0.0, "per_class": {}}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tracker of whoever runs the tests is told anything."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def open_tracker(folder: Path, service: str, *, first_step: int = 0) -> tuple[Tracker, RunFolder]:
    config = Config.model_validate(
        {
            "steps": 6,
            "name": "digits",
            "run_dir": str(folder),
            "resume": "auto" if first_step else None,
            "tracking": {"services": [service], "project": "birds"},
        }
    )
    place = RunFolder.open(config, now=datetime.now(UTC))
    place.begin(config)
    return Tracker(place, config, LineConsole(config, io.StringIO()), first_step=first_step), place


def take_steps(track: Tracker, steps: range) -> None:
    for step in steps:
        track.evaluation(step, {**RESULT, "accuracy": step / 10})
        track.samples(step, [scored()], 1)
        track.write(record(step))


def finish(track: Tracker, place: RunFolder, steps: int, outcome: str = "finished") -> None:
    track.close(track.summary(outcome=outcome, steps=steps, wall_seconds=9, startup_seconds=1, weights_version=steps))
    place.close()


def list_failures(folder: Path) -> list[Mapping[str, Any]]:
    return [row for row in read_jsonl(folder / "events.jsonl") if row["kind"] == "tracker_failed"]


def test_mlflow_gets_every_number_and_picture_and_a_resumed_run_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    folder = tmp_path / "run"
    track, place = open_tracker(folder, "mlflow")
    take_steps(track, range(4))
    finish(track, place, 4, "interrupted")
    assert list_failures(folder) == []

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("birds")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("digits", "KILLED")

    track, place = open_tracker(folder, "mlflow", first_step=3)
    take_steps(track, range(3, 6))
    finish(track, place, 6)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["learner.lr"] and run.data.params["rollout.group_size"] == "4"
    for name in ("reward", "loss", "evaluation/accuracy"):
        assert {one.step for one in client.get_metric_history(run.info.run_id, name)} == set(range(6)), name
    sent = {one.step: one.value for one in client.get_metric_history(run.info.run_id, "reward")}
    assert sent == pytest.approx({step: record(step).flat()["reward"] for step in range(6)})
    files = {one.path for one in client.list_artifacts(run.info.run_id, "samples")}
    assert {"samples/000000-0.png", "samples/000000.json", "samples/000005.json"} <= files
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/samples/000005.json")
    assert table["groups"][0]["question"] == "Which digit?"
    assert [one["reward"] for one in table["groups"][0]["answers"]] == [1.0, 1.0, 0.0, 0.0]


def test_wandb_gets_every_number_and_a_table_with_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET * 2)
    folder = tmp_path / "run"
    track, place = open_tracker(folder, "wandb")
    take_steps(track, range(3))
    finish(track, place, 3)
    assert list_failures(folder) == []
    (written,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert written.stem == f"run-{(folder / 'trackers.id').read_text()}"
    sent = written.read_bytes()
    for name in (b"evaluation/accuracy", b"zero_std_share", b"learner.lr", b"birds"):
        assert name in sent, name
    tables = list((folder / "wandb").glob("offline-run-*/files/media/table/*.json"))
    assert len(tables) == 3 and "Which digit?" in tables[0].read_text()
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/**/*.png"))
    held = [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == [], "the key is nobody's business"


def test_trackio_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="it wants an older Pillow than Rollcall: no package of dev")
    import sqlite3

    from trackio import utils  # type: ignore[attr-defined, unused-ignore]

    monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path / "store", raising=False)
    track, place = open_tracker(tmp_path / "run", "trackio")
    take_steps(track, range(3))
    finish(track, place, 3)
    assert list_failures(tmp_path / "run") == []
    (stored,) = tmp_path.rglob("birds*.db")
    with sqlite3.connect(stored) as base:
        assert base.execute("select count(*) from metrics").fetchone()[0] >= 9


def test_a_tracker_that_cannot_be_reached_is_one_event_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:{SECRET}@127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "run"
    track, place = open_tracker(folder, "mlflow")
    began = time.monotonic()
    take_steps(track, range(4))
    assert time.monotonic() - began < 5, "no step waits for it"
    finish(track, place, 4)
    (failed,) = list_failures(folder)
    assert failed["tracker"] == "mlflow" and "127.0.0.1" in failed["why"]
    assert len(list(read_jsonl(folder / "metrics.jsonl"))) == 4
    assert not any(SECRET in path.read_text(errors="replace") for path in folder.rglob("*.*") if path.is_file())


def test_a_tracker_that_blocks_holds_no_step_up_and_the_end_for_seconds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(courier, "_open", lambda name, facts: never.wait())
    monkeypatch.setattr(courier, "LAST_S", 0.3)
    folder = tmp_path / "run"
    track, place = open_tracker(folder, "wandb")
    began = time.monotonic()
    take_steps(track, range(3))
    finish(track, place, 3)
    assert time.monotonic() - began < 10
    (failed,) = list_failures(folder)
    assert failed["why"] == "it did not take all within 0.3 s of the end"
    never.set()


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "my_password"])
def test_no_secret_is_in_what_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert (
        courier.hide_secrets(f"refused:\n {SECRET} at https://me:you@there/x") == "refused: *** at https://***@there/x"
    )


@pytest.mark.parametrize(
    ("service", "told"),
    [
        ("mlflow", "MLFLOW_TRACKING_URI is not set"),
        ("wandb", "neither WANDB_API_KEY nor WANDB_MODE is set"),
        ("trackio", "no module trackio"),
    ],
)
def test_a_tracker_that_cannot_work_is_refused_at_the_door(
    service: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "learner.driver.preflight.services.find_spec", lambda name: None if name == "trackio" else found(name) or name
    )
    with pytest.raises(ConfigError) as caught:
        check_services(TrackingConfig(services=[service]))
    assert told in str(caught.value)


def test_a_tracker_that_is_known_passes_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.driver.preflight.services.find_spec", lambda name: name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    keys = Path.home() / ".netrc"
    keys.write_text("machine api.wandb.ai login user password one\n")
    keys.chmod(0o600)
    check_services(TrackingConfig(services=["mlflow", "wandb", "trackio"]))
