"""The linter and the builder read a folder alike, say the same of it, and refuse it alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.build.__main__ import main as build
from common.data.lint import main as lint
from tests.helpers.makers import encoded

COLOURS = ("red", "green", "blue", "black", "white", "gray", "pink", "gold", "navy", "teal", "lime", "cyan")


def pictures(root: Path, counts: dict[str, int]) -> Path:
    """So many pictures in each folder, no two alike."""
    size = 8
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            size += 1
            data = encoded(COLOURS[number], size=(size, 8), form="JPEG")
            (root / name / f"{number}.JPG").write_bytes(data)
    return root


READ = {
    "cases": ({"Training/a": 2, "Training/b": 2, "TEST/a": 1, "TEST/b": 1}, (4, 2), []),
    "kaggle": (
        {"seg_train/seg_train/a": 2, "seg_train/seg_train/b": 2, "seg_test/seg_test/a": 1, "seg_pred/seg_pred": 2},
        (4, 1),
        ["entered (2): seg_test/seg_test, seg_train/seg_train", "hold no class of them (1): seg_pred (2 files)"],
    ),
    "wrapped": ({"zip/PetImages/a": 2, "zip/PetImages/b": 2}, (4, 0), ["entered (1): zip/PetImages"]),
    "empty": ({"a": 2, "b": 2, "c": 0}, (4, 0), ["folders without a picture are left out (1): c"]),
    "holdout": ({"train/a": 2, "train/b": 2, "holdout": 1}, (4, 0), ["hold no class of them (1): holdout (1 file)"]),
}


@pytest.mark.parametrize(("counts", "rows", "notes"), READ.values(), ids=READ)
def test_linter_and_builder_say_the_same(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    counts: dict[str, int],
    rows: tuple[int, int],
    notes: list[str],
) -> None:
    place = pictures(tmp_path / "in", counts)
    (place / ".DS_Store").touch()
    (place / "README.md").touch()
    notes = [*notes, "left out (1): .DS_Store", "left out (1): README.md"]
    assert lint([str(place), "--image-size", "8"]) == 0
    linted = capsys.readouterr().out
    share = () if rows[1] else ("--test-fraction", "0")
    assert build([str(place), "--out", str(tmp_path / "set"), "--shots", "all", *share]) == 0
    built = capsys.readouterr().out
    for printed in (linted, built):
        said = [line for line in printed.splitlines() if line.startswith("note: ")]
        assert len(said) == len(notes)
        assert all(any(note in line for line in said) for note in notes)
    assert f"{rows[0]} rows" in linted and f"train      {rows[0]:>6} rows" in built
    if rows[1]:
        assert f"{rows[1]} rows" in linted and f"test       {rows[1]:>6} rows" in built


REFUSED = {
    "twins": ({"Train/a": 1, "Train/b": 1, "training/a": 1}, "split train more than once"),
    "flat": ({"train": 2, "test": 1}, "pictures without class folders"),
    "turned": ({"a/train": 1, "a/test": 1, "b/train": 1, "b/test": 1}, "splits inside its class folders"),
    "mixed": ({"a": 1, "b": 1, "test/a": 1, "test/b": 1}, "class folders beside test"),
    "again": ({"a": 1, "b": 1, "all/a": 1, "all/b": 1}, "class folders once more"),
}


@pytest.mark.parametrize(("counts", "message"), REFUSED.values(), ids=REFUSED)
def test_linter_and_builder_refuse_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: dict[str, int], message: str
) -> None:
    place = pictures(tmp_path / "in", counts)
    assert lint([str(place)]) == 2
    assert message in capsys.readouterr().err
    assert build([str(place), "--out", str(tmp_path / "set"), "--shots", "all"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "set").exists()
