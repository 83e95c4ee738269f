"""Preflight: what cannot work ends in seconds with one error of what, got and remedy, and nothing was started."""

from __future__ import annotations

import json
import os
import shlex
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.config.schema import Config
from common.data.build.__main__ import main as build
from learner.main import main
from learner.storage.run_folder import RunFolder
from tests.helpers import jobs
from tests.helpers.pictures import draw_shapes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw_shapes(tmp_path / "pictures", each=4)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line prints when it refuses `words`."""
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "\n  got: " in printed
    assert "\n  remedy: " in printed
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["rollout.num_engins=2"], "perhaps you meant rollout.engines"),
        (["--rollout.group-size", "1"], "rollout.group_size = 1"),
        (["learner.ranks=3"], "does not divide rollout.prompts_per_step = 32"),
        (["weights.transport=nccl"], "weights.transport = nccl"),
        (["learner.warmup_steps=200"], "learner.warmup_steps = 200"),
        (["data.mode=thinking"], "no_think"),
        (["--config", "no-such.yaml"], "no-such.yaml"),
        (["model.path=Qwen/Qwen2-VL-2B-Instruct"], "deploy/recipes/qwen2vl-2b.yaml"),
        (["rollout.prompts_per_step=2000"], "1397 rows"),
        (["data.max_prompt_tokens=16"], "prompt of 17 tokens is over 16"),
        (["method=exact", "rollout.max_completion_tokens=1"], "of 2 tokens is over 1"),
        (["reward.functions={acuracy: 1.0}"], "accuracy"),
        (["reward.functions={no_such_package:f: 1.0}"], "no_such_package"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_command_line_that_cannot_work(capsys: pytest.CaptureFixture[str], words: list[str], named: str) -> None:
    assert named in refusal(capsys, "--dry-run", *words)


def test_epochs_are_turned_into_steps_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "epochs=2"]) == 0
    assert "epochs: 2 of them are 88 steps of 32 prompts" in capsys.readouterr().out
    assert "are 88 steps" in refusal(capsys, "--dry-run", "epochs=2", "learner.warmup_steps=88")


def recipe(folder: Path, **data: object) -> list[str]:
    path = folder / "recipe.yaml"
    settings = {
        "model": {"path": "embedded:tiny", "dtype": "float32"},
        "data": {"eval_fraction": 0.25, "image_size": 56, **data},
        "rollout": {"prompts_per_step": 4, "gpus_per_engine": 0},
        "learner": {"gpus_per_rank": 0},
        "cluster": {"device": "cpu"},
    }
    path.write_text(json.dumps(settings))
    return ["--config", str(path), "--dry-run"]


def test_data_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(capsys, *recipe(tmp_path, path=str(tmp_path / "nothing")))


def test_a_zero_byte_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path) -> None:
    (pictures / "circle" / "2.jpg").write_bytes(b"")
    printed = refusal(capsys, *recipe(tmp_path, path=str(pictures)))
    assert "circle/2.jpg: image has zero bytes" in printed


def test_a_folder_becomes_a_set_that_the_laptop_recipe_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(jobs.ROOT)
    shapes = draw_shapes(tmp_path / "pictures", each=20)
    assert build([str(shapes), "--shots", "all", "--out", str(tmp_path / "set")]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if "laptop.yaml" in line)
    words = shlex.split(command)[3:]
    assert main([*words, "--dry-run"]) == 0
    assert "48 rows to learn from, 12 held out, 3 labels" in capsys.readouterr().out


def test_labels_are_linted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Doubts are said, and what the metric of the mode cannot tell apart stops."""
    shapes = draw_shapes(tmp_path / "pictures", each=4)
    (shapes / "square").rename(shapes / "Circle")
    words = recipe(tmp_path, path=str(shapes))
    assert main(words) == 0
    assert "warning: labels that differ only in case" in capsys.readouterr().out
    assert "'Circle' / 'circle'" in refusal(capsys, *words, "data.mode=think")


def test_a_label_that_no_completion_can_hold(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path, random_qwen2vl: Path
) -> None:
    words = [*recipe(tmp_path, path=str(pictures)), f"model.path={random_qwen2vl}", "data.max_prompt_tokens=1000"]
    printed = refusal(capsys, *words, "rollout.max_completion_tokens=2")
    assert "labels of more tokens than the 2 of rollout.max_completion_tokens (3): 'circle' has " in printed
    assert main([*words, "rollout.max_completion_tokens=20"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["order", "draw"])
def test_lists_that_change_must_fit_the_prompt(capsys: pytest.CaptureFixture[str], how: str) -> None:
    words = ["--dry-run", "steps=50", f"data.reshuffle={how}"]  # each row is shown twice
    assert "tokens is over 20" in refusal(capsys, *words, "data.max_prompt_tokens=20")
    assert main(words) == 0


def test_a_model_that_reads_no_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    printed = refusal(capsys, *recipe(tmp_path, path=str(pictures)), f"model.path={model}")
    assert "model_type llama" in printed
    assert "qwen2_vl, qwen2_5_vl" in printed


def test_a_folder_that_holds_another_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert "resume=auto" in refusal(capsys, f"run_dir={tmp_path}")


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(capsys, f"run_dir={tmp_path / 'file' / 'run'}")


def test_a_second_run_in_the_same_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = RunFolder.open(Config(run_dir=str(tmp_path / "run")), now=datetime.now(UTC))
    for words in ([], ["resume=auto"]):
        assert f"held by pid {os.getpid()}" in refusal(capsys, f"run_dir={tmp_path / 'run'}", *words)
    first.close()


@pytest.mark.engine
def test_a_run_that_does_not_get_to_its_first_step_says_so_in_its_folder(tmp_path: Path) -> None:
    """Ended by Ctrl-C while its parts start."""
    run_dir = tmp_path / "run"
    with jobs.nothing_left_in_shared_memory():
        again = jobs.start(run_dir, "resume=auto")
        jobs.wait_for("cluster", lambda: "cluster up" in jobs.console(run_dir), again)
        family = jobs.descendants(again)
        again.send_signal(signal.SIGINT)
        assert jobs.finish(again, run_dir, timeout_s=60) == 130, jobs.console(run_dir)
        assert len(family) > 3
        assert jobs.gone(family) == []
    assert json.loads((run_dir / "summary.json").read_text())["outcome"] == "interrupted"
    assert "Traceback" not in jobs.console(run_dir)
