"""A checkpoint may be anybody's: code planted in any file of it is refused by the file's name, and never run."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from common.errors import CheckpointError
from learner.storage.resume import CLASSES_OF_DEEPSPEED
from learner.trainer.rank import LearnerRank
from tests.helpers import tiny
from tests.helpers.planted import plant_in_torch_file
from tests.learner.trainer.test_group import LORA, batch, opened, settings

KINDS = [
    (0, "float32", False),
    (1, "float32", False),
    (2, "float32", True),
    (3, "float32", False),
    (1, "bfloat16", False),
    (2, "bfloat16", False),
    (3, "bfloat16", True),
]


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "dtype", "adapted"), KINDS)
def test_code_in_any_file_of_a_checkpoint_is_refused(
    ray_session: None, tmp_path: Path, stage: int, dtype: str, adapted: bool
) -> None:
    config = settings(tiny.save(tmp_path / "model"), ranks=1, stage=stage, dtype=dtype)
    moving = stage in (0, 3) and not adapted
    if moving:
        learner = config.learner.model_copy(update={"reference_ema": 0.9})
        config = config.model_copy(update={"learner": learner})
    if adapted:
        config = config.model_copy(update={"lora": LORA})
    sound, marker = tmp_path / "sound", tmp_path / "marker"
    with opened(config) as group:
        group.step(batch(0), at=0)
        group.save(sound)
        files = sorted(file.relative_to(sound) for file in sound.rglob("*") if file.is_file())
        assert len(files) == (3 if stage else 2) + moving, "another file, which needs a look"
        assert (Path("reference-0.pt") in files) == moving
        for file in files:
            assert set(get_unsafe_globals_in_checkpoint(sound / file)) <= CLASSES_OF_DEEPSPEED
            planted = shutil.copytree(sound, tmp_path / f"planted-{file.name}")
            plant_in_torch_file(planted / file, marker)
            with pytest.raises(CheckpointError, match=rf"{file.name} of the checkpoint cannot be used\n.*posix.mkdir"):
                group.load(planted)
        for file in files:
            damaged = shutil.copytree(sound, tmp_path / f"damaged-{file.name}")
            torch.save([1, 2], damaged / file)
            with pytest.raises(CheckpointError, match="cannot be used"):
                group.load(damaged)
        group.load(sound)
    assert not marker.exists()


def test_the_planted_code_would_run(tmp_path: Path) -> None:
    """The others prove nothing unless it does."""
    torch.save({}, tmp_path / "file")
    plant_in_torch_file(tmp_path / "file", tmp_path / "marker")
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.engine
def test_other_loads_of_deepspeed_are_refused_too(ray_session: None, tmp_path: Path) -> None:
    """ZeRO-3 has two of its own, for universal checkpoints, that ask torch to run code: a rank's process refuses."""
    import ray

    planted, marker = tmp_path / "zero/optimizer_state.pt", tmp_path / "marker"
    planted.parent.mkdir()
    torch.save({}, planted)
    plant_in_torch_file(planted, marker)
    shutil.copy(planted, tmp_path / "zero/fp32.pt")
    with opened(settings(tiny.save(tmp_path / "model"), ranks=1, stage=3)) as group:
        asked = group._ring.ranks[0].__ray_call__.remote(load_universal, tmp_path)  # noqa: SLF001
        refusals: list[str] = ray.get(asked, timeout=60)
    assert [refusal.count("unsupported GLOBAL") for refusal in refusals] == [1, 1]
    assert not marker.exists()


def load_universal(rank: LearnerRank, folder: Path) -> list[str]:
    """What DeepSpeed's own two loads raise in the process of a rank."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    stage3: Any = DeepSpeedZeroOptimizer_Stage3
    optimizer = SimpleNamespace(dp_process_group=None)
    with pytest.raises(pickle.UnpicklingError) as first:
        stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3(optimizer, str(folder))
    with pytest.raises(pickle.UnpicklingError) as second:
        stage3.load_hp_checkpoint_state(optimizer, str(folder / "zero"), "fp32")
    return [str(first.value), str(second.value)]
