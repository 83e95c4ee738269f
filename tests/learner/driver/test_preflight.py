"""What preflight lets pass with a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.schema import Config
from learner.driver.preflight import model
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
