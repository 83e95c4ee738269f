"""What is left on disk has the mode of any new file: another user can read, serve or clean it up as the umask says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config.schema import Config, DataConfig, LoraConfig
from common.data.build import __main__ as build
from common.data.sources import load
from common.storage.output import WriteReport, open_output
from learner.embedded.model import build_model, ensure_model
from learner.model.load import export_model, load_model
from learner.model.lora import add_adapters, export_adapter
from learner.report import __main__ as report
from learner.storage.checkpoint import DriverState, write_state
from learner.storage.checkpoint_folder import CheckpointFolder
from learner.storage.files import append_jsonl
from tests.helpers.made_run import made_run
from tests.helpers.makers import image_folder
from tests.helpers.modes import assert_modes


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_an_export(random_qwen2vl: Path, tmp_path: Path, umask: int) -> None:
    config = Config.model_validate({"model": {"path": str(random_qwen2vl), "dtype": "float32"}, "lora": {"rank": 2}})
    model = load_model(str(random_qwen2vl), config)
    export_model(model.state_dict(), str(random_qwen2vl), config, tmp_path / "export")
    assert_modes(tmp_path / "export", umask)
    add_adapters(model, LoraConfig(rank=2))
    tensors = {name: one for name, one in model.state_dict(keep_vars=True).items() if ".lora_" in name}
    export_adapter(tensors, model, config.lora, "base", tmp_path / "adapter")
    assert_modes(tmp_path / "adapter", umask)


@pytest.mark.slow
def test_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    monkeypatch.setattr("learner.embedded.model._warm_up", lambda *_: None)
    data = DataConfig(image_size=56)
    source = load(data, split="test")
    build_model(tmp_path / "model", [source[row] for row in range(20)], data)
    assert_modes(tmp_path / "model", umask)


@pytest.mark.slow
def test_the_embedded_model_of_an_older_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose files were for their owner alone."""
    monkeypatch.setattr("learner.embedded.model._warm_up", lambda *_: None)
    data = DataConfig(image_size=56, split="test")
    for file in ensure_model(tmp_path / "cache", data).iterdir():
        file.chmod(0o600)
    assert ensure_model(tmp_path / "cache", data).is_dir()
    assert_modes(tmp_path / "cache", umask)


def test_a_built_set(tmp_path: Path, umask: int, capsys: pytest.CaptureFixture[str]) -> None:
    place = image_folder(tmp_path / "pictures", {"cat": 4, "dog": 4})
    assert build.main([place, "--out", str(tmp_path / "set"), "--shots", "all"]) == 0
    assert_modes(tmp_path / "set", umask)


def test_a_checkpoint_and_a_report(tmp_path: Path, umask: int, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path / "run")
    with CheckpointFolder(run / "checkpoints", keep=1).write_checkpoint(1, estimate=0) as draft:
        output = open_output(draft.place)
        with output.open("rank0/weights") as file:
            file.write(b"weights")
        draft.reports = [WriteReport(by="rank 0", files=tuple(output.files))]
        draft.own = write_state(draft.place, DriverState(step=1, config=Config(), stream={}, counts={}, control={}))
    append_jsonl(run / "events.jsonl", {"kind": "start"})
    assert report.main([str(run)]) == 0
    assert_modes(run, umask)
