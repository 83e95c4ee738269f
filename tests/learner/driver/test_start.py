"""A start with other training rows than its checkpoint's is refused at the door, and by a dry run."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from common.config.cli import parse
from common.data.sources import load
from common.data.stream import PromptStream
from common.storage.output import WriteReport, open_output
from learner.main import main
from learner.storage.checkpoint import DriverState, write_state
from learner.storage.checkpoint_folder import CheckpointFolder
from tests.helpers.makers import image_folder, unlike


def words(run: Path, data: Path, *more: str) -> list[str]:
    own = ["data.eval_split=null", "data.image_size=56", "rollout.prompts_per_step=4", "model.path=embedded:tiny"]
    return [
        "--config",
        "deploy/recipes/laptop.yaml",
        f"run_dir={run}",
        f"data.path={data}",
        *own,
        "steps=20",
        "resume=auto",
        *more,
    ]


def begin(run: Path, data: Path, **changes: Any) -> None:
    """Leave a checkpoint of step 5 on this data."""
    config = parse(words(run, data)).config
    stream = PromptStream(load(config.data, split="train"), seed=config.seed, prompts_per_step=4)
    state = DriverState(step=5, config=config, stream=asdict(replace(stream.state(), **changes)), counts={}, control={})
    with CheckpointFolder(run / "checkpoints", keep=2).write_checkpoint(5, estimate=0) as draft:
        output = open_output(draft.place)
        with output.open("rank-0.pt") as file:
            file.write(b"weights")
        draft.reports = [WriteReport(by="rank 0", files=tuple(output.files))]
        draft.own = write_state(draft.place, state)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return Path(image_folder(tmp_path / "data", {"zero": 4, "one": 4}))


def started(capsys: pytest.CaptureFixture[str], run: Path, data: Path) -> tuple[int, str]:
    code = main([*words(run, data), "--dry-run"])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_same_rows_go_on_wherever_they_lie(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path / "run", data)
    code, said = started(capsys, tmp_path / "run", data)
    assert (code, "going on from step 5" in said) == (0, True), said
    shutil.move(data, tmp_path / "moved")
    code, said = started(capsys, tmp_path / "run", tmp_path / "moved")
    assert code == 0 and "digest" not in said, said


@pytest.mark.parametrize("change", ["pictures", "labels", "number"])
def test_other_rows_are_refused(tmp_path: Path, data: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path / "run", data)
    if change == "pictures":
        (data / "one/2.png").write_bytes(unlike("another"))
    elif change == "labels":
        (data / "one/2.png").rename(data / "kept.png")
        (data / "zero/2.png").rename(data / "one/2.png")
        (data / "kept.png").rename(data / "zero/2.png")
    else:
        (data / "one/2.png").unlink()
    code, said = started(capsys, tmp_path / "run", data)
    assert code == 2 and "does not hold the rows that the run began with" in said
    assert {"pictures": "other pictures", "labels": "other pictures", "number": "8 rows then, 7 now"}[change] in said


def test_a_checkpoint_without_a_digest_goes_on_where_the_path_is_the_same(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "run", data, digests=None)
    code, said = started(capsys, tmp_path / "run", data)
    assert code == 0 and "warning: the checkpoint holds no digest of its rows" in said, said
    shutil.copytree(data, tmp_path / "copy")
    code, said = started(capsys, tmp_path / "run", tmp_path / "copy")
    assert code == 2 and "cannot tell whether these are the rows" in said
