"""What a run leaves behind, over kills, resumes and full disks."""

from __future__ import annotations

import io
import json
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.config.schema import Config
from learner.storage import disk
from learner.storage.run_folder import RunFolder
from learner.tracking import tracker as tracking
from learner.tracking.console import LineConsole
from learner.tracking.records import Summary
from learner.tracking.tracker import Tracker
from tests.helpers.fake_run import record, scored

CONFIG = Config(steps=6, name="digits")
RESULT = {"accuracy": 0.5, "invalid_rate": 0.0, "per_class": {"one": [1, 2]}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    return RunFolder.open(CONFIG, now=datetime.now(UTC))


def tracker(folder: RunFolder, *, first_step: int = 0) -> tuple[Tracker, io.StringIO]:
    out = io.StringIO()
    return Tracker(folder, CONFIG, LineConsole(CONFIG, out), first_step=first_step), out


def rows(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    def strict(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=strict) for line in (folder.path / name).read_text().splitlines()]


def tensorboard(folder: RunFolder) -> Any:
    """What TensorBoard reads of the run."""
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    return events


def run(track: Tracker, steps: range) -> None:
    for step in steps:
        if step % 2 == 0:
            track.evaluation(step, {**RESULT, "accuracy": 0.1 * step})
            track.samples(step, [scored()], 1)
        track.write(record(step))


def summary(track: Tracker, steps: int = 6, **changes: Any) -> Summary:
    given = {"outcome": "finished", "steps": steps, "wall_seconds": 66.0, "startup_seconds": 5.0}
    return track.summary(**{**given, "weights_version": steps, **changes})


def test_one_flushed_line_a_step(folder: RunFolder) -> None:
    track, out = tracker(folder)
    for step in range(3):
        track.write(record(step))
        assert [row["step"] for row in rows(folder, "metrics.jsonl")] == list(range(step + 1))
    assert rows(folder, "metrics.jsonl")[2] == record(2).row()
    assert out.getvalue().count("step=") == 3


def test_a_disk_that_hangs_holds_no_step_up(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown once; when the disk is back, what was written meanwhile is there, in order."""
    monkeypatch.setattr(disk, "PATIENCE_S", 0.3)
    track, out = tracker(folder)
    os.mkfifo(folder.path / "metrics.jsonl")  # whoever opens it to write waits for a reader
    began = time.monotonic()
    for step in range(5):
        track.write(record(step))
    assert time.monotonic() - began < 3
    assert (track.failures, out.getvalue().count("did not answer for 0.3 s")) == (1, 1)
    read = b""
    pipe = os.open(folder.path / "metrics.jsonl", os.O_RDONLY)
    while chunk := os.read(pipe, 1 << 16):
        read += chunk
        time.sleep(0.2)  # so long is the next line on its way
    os.close(pipe)
    assert [json.loads(line)["step"] for line in read.splitlines()] == list(range(5))


def test_nan_is_null_in_json_and_nan_in_the_history(folder: RunFolder) -> None:
    track, _ = tracker(folder)
    track.write(record(0, kl=math.nan, reward=math.inf))
    assert rows(folder, "metrics.jsonl")[0]["kl"] is None
    again, _ = tracker(folder, first_step=1)
    assert math.isnan(again.history.rewards[0])


def test_samples_keep_image_and_completions_as_rows(folder: RunFolder) -> None:
    track, _ = tracker(folder)
    track.samples(0, [scored(("</script>\x1b[31m\n", "seven"))], 1)
    (row,) = rows(folder, "samples.jsonl")
    assert [one["text"] for one in row["completions"]] == ["</script>\x1b[31m\n", "seven"]
    assert [one["reward"] for one in row["completions"]] == [0.0, 1.0]
    assert [one["advantage"] for one in row["completions"]] == pytest.approx([-0.707, 0.707], abs=1e-3)
    assert row["label"] == "seven" and row["prompt_id"] == "train/17"
    assert row["candidates"] is None  # the question has no list
    assert row["logprobs"] == pytest.approx([-0.3, -0.3])
    with Image.open(folder.path / row["image"]) as thumbnail:
        assert thumbnail.size == (128, 85)


def test_the_best_and_the_worst_group_of_a_step_are_kept_too(folder: RunFolder) -> None:
    track, _ = tracker(folder)
    middling, good, bad = scored(), scored(("seven",) * 4), scored(("one",) * 4)
    track.samples(0, [middling, bad, good, scored()], 1)
    track.samples(1, [good, bad], 1)
    track.samples(2, [good], 3)
    told = [
        (row["step"], row["kept_for"], sum(one["reward"] for one in row["completions"]))
        for row in rows(folder, "samples.jsonl")
    ]
    assert told == [(0, "first", 2), (0, "best", 4), (0, "worst", 0), (1, "first", 4), (1, "worst", 0), (2, "first", 4)]
    assert [row["image"][-5] for row in rows(folder, "samples.jsonl")] == list("012010")


def test_events_have_both_clocks_and_are_never_cut(folder: RunFolder) -> None:
    track, _ = tracker(folder)
    track.event("engine_lost", engine="engine-1", why=OSError("gone"))
    track, _ = tracker(folder, first_step=0)
    kinds = [row["kind"] for row in rows(folder, "events.jsonl")]
    assert kinds == ["start", "engine_lost", "start"]
    assert rows(folder, "events.jsonl")[1]["why"] == "gone"
    assert all(row["wall"] > 1.7e9 and row["monotonic"] > 0 for row in rows(folder, "events.jsonl"))


def test_a_resumed_run_keeps_its_past_and_drops_the_lost_future(folder: RunFolder) -> None:
    track, _ = tracker(folder)
    run(track, range(6))
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')  # torn by the kill
    track, _ = tracker(folder, first_step=4)
    assert [row["step"] for row in rows(folder, "metrics.jsonl")] == [0, 1, 2, 3]
    assert [row["step"] for row in rows(folder, "samples.jsonl")] == [0, 2]
    assert [row["step"] for row in rows(folder, "evaluations.jsonl")] == [0, 2, 4]  # 4: of the weights resumed from
    assert sorted(path.name for path in (folder.path / "samples").iterdir()) == ["000000-0.png", "000002-0.png"]
    assert track.history.rewards == [record(step).reward for step in range(4)]
    run(track, range(4, 6))
    assert [row["step"] for row in rows(folder, "metrics.jsonl")] == list(range(6))
    assert [row["step"] for row in rows(folder, "evaluations.jsonl")] == [0, 2, 4]  # evaluated again, written once


def test_sets_are_lines_of_their_own_and_come_back_on_resume(folder: RunFolder) -> None:
    track, out = tracker(folder)
    new, both = {**RESULT, "set": "new", "accuracy": 0.25, "ece": None}, {"set": "H", "accuracy": 0.33, "lenient": 0.4}
    track.evaluation(0, {**RESULT, "set": "held-out"}, new, both)
    track.evaluation(2, {**RESULT, "set": "held-out", "accuracy": 0.9}, new)
    assert "accuracy 0.500, invalid 0.000; new 0.250; H 0.330" in out.getvalue()
    track, _ = tracker(folder, first_step=1)
    assert [(row["step"], row["set"]) for row in rows(folder, "evaluations.jsonl")] == [
        (0, "held-out"),
        (0, "new"),
        (0, "H"),
    ]
    history = track.history
    assert history.accuracies == {0: 0.5} and list(history.evaluations) == [0]
    assert history.find_measure(0, "H") == 0.33 and history.find_measure(0, "H/lenient") == 0.4
    assert history.find_measure(0, "accuracy") == 0.5 and history.find_measure(0, "new/accuracy") == 0.25
    assert history.find_measure(0, "new/ece") is history.find_measure(2, "accuracy") is None
    events = tensorboard(folder)
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("evaluation")}
    assert tags >= {"evaluation/accuracy", "evaluation/new/accuracy", "evaluation/H/lenient"}
    assert "evaluation/new/ece" not in tags


def test_a_start_without_a_checkpoint_drops_everything(folder: RunFolder) -> None:
    track, _ = tracker(folder)
    run(track, range(3))
    track, _ = tracker(folder)
    assert rows(folder, "metrics.jsonl") == rows(folder, "samples.jsonl") == []
    assert track.history.rewards == []


def test_tensorboard_reads_the_same_numbers_over_a_resume(folder: RunFolder) -> None:
    track, _ = tracker(folder)
    run(track, range(4))
    track, _ = tracker(folder, first_step=2)
    track.write(record(2, reward=9.0))
    events = tensorboard(folder)
    assert [(point.step, point.value) for point in events.Scalars("reward")] == [
        (0, pytest.approx(record(0).reward)),
        (1, pytest.approx(record(1).reward)),
        (2, 9.0),
    ]
    assert events.Scalars("evaluation/accuracy")[0].value == 0.0
    assert "share/learn" in events.Tags()["scalars"]


def test_summary_is_of_the_whole_run(folder: RunFolder) -> None:
    track, _ = tracker(folder)
    run(track, range(4))
    track.write(record(4, logprob_gap_max=5e-5))
    track, _ = tracker(folder, first_step=5)
    track.evaluation(6, {**RESULT, "accuracy": 0.95})
    made = summary(track)
    written = json.loads((folder.path / "summary.json").read_text())
    assert written["accuracy_before"] == 0.0 and written["accuracy_after"] == 0.95 == made.accuracy_best
    assert written["max_logprob_gap"] == 5e-5
    assert written["completions_per_second"] == pytest.approx(760, rel=0.1)
    assert written.keys() >= {"steps", "wall_seconds", "startup_seconds", "weights_version", "config_hash", "git_sha"}


@pytest.mark.parametrize(
    ("accuracies", "steps", "says"),
    [
        ({0: 0.1, 6: 0.9}, 6, "0.100 -> 0.900 held-out, greedy (best 0.900)"),
        ({0: 0.5, 6: 0.4}, 6, "0.500 -> 0.400 held-out, greedy (best 0.500, no better than before)"),
        ({0: 0.1, 2: 0.3}, 3, "0.100 -> 0.300 held-out, greedy (best 0.300, last evaluated after 2 steps)"),
        ({0: 0.1}, 3, "0.100 before; not evaluated after"),
        ({}, 3, "not evaluated"),
    ],
)
def test_the_closing_block_is_honest(folder: RunFolder, accuracies: dict[int, float], steps: int, says: str) -> None:
    track, out = tracker(folder)
    for step, accuracy in accuracies.items():
        track.evaluation(step, {**RESULT, "accuracy": accuracy})
    outcome = "finished" if steps == 6 else "interrupted"
    track.close(summary(track, steps, outcome=outcome, checkpoint_failures=2))
    lines = out.getvalue().splitlines()
    assert f"digits: {outcome} after {steps} of 6 steps" in lines
    assert [line.split(None, 1)[1] for line in lines if line.startswith("  accuracy ")] == [says]
    assert any("2 could not be written" in line for line in lines)
    assert lines[-1] == f"run folder: {folder.address}"


def test_a_full_disk_is_counted_and_shown_and_stops_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    track, out = tracker(folder)
    track.write(record(0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "append_jsonl", full)
        run(track, range(1, 4))
        track.event("checkpoint", step=1)
    assert track.failures == 6  # three steps, an evaluation, a sample, an event
    assert out.getvalue().count("log_failed why=[Errno 28]") == 1
    track.write(record(4))
    assert [row["step"] for row in rows(folder, "metrics.jsonl")] == [0, 4]
    made = summary(track)
    track.close(made)
    assert made.log_failures == 6 and "6 lines or files could not be written" in out.getvalue()


def test_a_screen_that_went_away_stops_nothing(folder: RunFolder) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    track = Tracker(folder, CONFIG, LineConsole(CONFIG, io.StringIO()))
    track._console = LineConsole(CONFIG, Gone())  # noqa: SLF001
    run(track, range(2))
    track.close(summary(track))
    assert [row["step"] for row in rows(folder, "metrics.jsonl")] == [0, 1]
    assert track.failures
