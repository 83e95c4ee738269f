"""What preflight lets pass with a warning, and builds of torch and vLLM that do not fit the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.config.schema import ClusterConfig, Config
from common.torch_build import require_torch_build
from learner import evaluate, main
from learner.driver.preflight import builds, model
from learner.driver.preflight.builds import check_builds
from learner.driver.preflight.run_inputs import run_preflight


@pytest.mark.parametrize(
    ("flags", "dtype", "warned"),
    [
        ("fma avx2 f16c", "bfloat16", True),
        ("fma avx2 f16c", "float32", False),
        ("avx2 avx512f avx512_bf16 sha_ni", "bfloat16", False),
        ("asimd i8mm bf16", "bfloat16", False),
    ],
)
def test_bfloat16_where_the_processor_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str, warned: bool
) -> None:
    monkeypatch.setattr(model, "CPUINFO", tmp_path / "cpuinfo")
    model.CPUINFO.write_text(f"processor : 0\nflags : {flags}\n")
    config = Config.model_validate(
        {
            "model": {"path": "embedded:tiny", "dtype": dtype},
            "data": {"path": "embedded:digits", "image_size": 56},
            "rollout": {"gpus_per_engine": 0},
            "learner": {"gpus_per_rank": 0, "zero_stage": 1},
            "cluster": {"device": "cpu"},
        }
    )
    said: list[str] = []
    run_preflight(config, say=said.append)
    assert any("no bfloat16 arithmetic" in line for line in said) == warned


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key for the device that the builds installed here are not for."""
    monkeypatch.setattr(builds, "require_torch_build", require_torch_build)
    return f"cluster.device={'cuda' if torch.version.cuda is None else 'cpu'}"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (main.main, ["run_dir={folder}"]),
        (main.main, ["run_dir={folder}", "cluster.address=local"]),
        (evaluate.main, ["--model", "embedded:tiny", "--out={folder}"]),
    ],
)
def test_builds_for_another_device_are_refused_before_anything_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Callable[[list[str]], int],
    words: list[str],
    other_device: str,
) -> None:
    """By everything that starts engines, in three lines."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = [word.format(folder=tmp_path / "run") for word in words]
    started = time.monotonic()
    assert command([*words, other_device, "data.eval_split=no_such_split"]) == 2
    assert time.monotonic() - started < 5
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 3
    assert "needs other builds of torch and vLLM" in error and "make setup DEVICE=" in error


def test_a_dry_run_warns_of_builds_for_another_device(capsys: pytest.CaptureFixture[str], other_device: str) -> None:
    assert main.main(["--dry-run", other_device]) == 0
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))
    assert "needs other builds of torch and vLLM" in warning and "make setup DEVICE=" in warning


@pytest.mark.parametrize("place", ["key", "environment"])
def test_a_driver_of_another_cluster_may_have_any_builds(
    monkeypatch: pytest.MonkeyPatch, other_device: str, place: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379" if place == "environment" else "")
    config = {"device": other_device.partition("=")[2], "address": "auto" if place == "key" else None}
    check_builds(ClusterConfig.model_validate(config))
