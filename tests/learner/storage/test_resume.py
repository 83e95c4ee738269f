"""Where a start goes on: from the checkpoint that is named, from the newest sound one, or from none."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.config.schema import Config
from common.errors import CheckpointError
from common.storage.output import WriteReport, open_output
from learner.storage.checkpoint import DriverState, write_state
from learner.storage.checkpoint_folder import CheckpointFolder
from learner.storage.resume import describe_start, find_resume_point, open_checkpoints
from learner.storage.run_folder import RunFolder
from tests.helpers.planted import plant_in_torch_file

CONFIG = Config(steps=20)


def resumed_step(run: Path, resume: str | None, config: Config = CONFIG) -> int | None:
    """The step that a start with `resume` goes on from."""
    wanted = config.model_copy(update={"run_dir": run, "resume": resume})
    with closing(RunFolder.open(wanted, now=datetime.now(UTC))) as folder:
        point = find_resume_point(wanted, folder, open_checkpoints(wanted, folder))
    return point.state.step if point else None


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 5 and 10."""
    store = CheckpointFolder(tmp_path / "run/checkpoints", keep=5)
    for step in (5, 10):
        state = DriverState(step=step, config=CONFIG, stream={}, counts={}, control={})
        with store.write_checkpoint(step, estimate=0) as draft:
            output = open_output(draft.place)
            with output.open("rank-0.pt") as file:
                file.write(b"weights")
            draft.reports = [WriteReport(by="rank 0", files=tuple(output.files))]
            draft.own = write_state(draft.place, state)
    return tmp_path / "run"


def test_auto_takes_the_newest_sound_one(run: Path) -> None:
    assert resumed_step(run, "auto") == 10
    (run / "checkpoints/step-000010/state.json").write_text("{}")
    assert resumed_step(run, "auto") == 5


def test_a_checkpoint_may_be_named(run: Path) -> None:
    assert resumed_step(run, str(run / "checkpoints/step-000005")) == 5
    (run / "checkpoints/step-000005/state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="step-000005 is not sound"):
        resumed_step(run, str(run / "checkpoints/step-000005"))


def test_code_in_a_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """With a manifest that fits, as whoever planted it would write it."""
    import torch

    marker, file = tmp_path / "marker", tmp_path / "file"
    store = CheckpointFolder(tmp_path / "run/checkpoints", keep=5)
    for step, plant in ((5, False), (10, True)):
        torch.save({"random": torch.zeros(3)}, file)
        if plant:
            plant_in_torch_file(file, marker)
        with store.write_checkpoint(step, estimate=0) as draft:
            output = open_output(draft.place)
            with output.open("rank-0.pt") as out:
                out.write(file.read_bytes())
            draft.reports = [WriteReport(by="rank 0", files=tuple(output.files))]
            draft.own = write_state(
                draft.place, DriverState(step=step, config=CONFIG, stream={}, counts={}, control={})
            )
    assert resumed_step(tmp_path / "run", str(tmp_path / "run/checkpoints/step-000005")) == 5
    for resume in ("auto", str(tmp_path / "run/checkpoints/step-000010")):
        with pytest.raises(CheckpointError, match=r"step-000010/rank-0\.pt .*cannot be used\n.*posix\.mkdir"):
            resumed_step(tmp_path / "run", resume)
    assert not marker.exists()


def test_there_may_be_none(tmp_path: Path) -> None:
    assert resumed_step(tmp_path / "run", None) is None
    assert resumed_step(tmp_path / "run", "auto") is None


def test_a_run_that_is_named_must_have_one(tmp_path: Path, run: Path) -> None:
    """Only `auto` may start afresh: whoever names a run means its weights."""
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"has no checkpoint to go on from\n.*resume = .*empty"):
        resumed_step(tmp_path / "empty", str(tmp_path / "empty"))
    assert resumed_step(run, str(run)) == 10


def test_a_start_says_where_it_goes_on(run: Path) -> None:
    wanted = CONFIG.model_copy(update={"run_dir": run, "resume": "auto"})
    with closing(RunFolder.open(wanted, now=datetime.now(UTC))) as folder:
        point = find_resume_point(wanted, folder, open_checkpoints(wanted, folder))
    assert describe_start(point) == f"going on from step 10 ({run}/checkpoints/step-000010)"
    assert describe_start(None) == "no checkpoint found, starting at step 0"


def test_another_experiment_is_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match="under another configuration"):
        resumed_step(run, "auto", Config(steps=21))
    assert resumed_step(run, "auto", Config(steps=20, name="other")) == 10
