"""What a checkpoint goes with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.config.schema import Config
from common.errors import CheckpointError
from learner.model.load import identify_base, require_base
from tests.helpers import tiny


def test_a_checkpoint_goes_with_its_own_base_only() -> None:
    config = Config.model_validate({"model": {"path": "org/base"}, "lora": {"rank": 2}})
    base = identify_base(tiny.model(), config)
    require_base(identify_base(tiny.model(), config), base, Path("step-000050"))
    moved, turned = tiny.model(), tiny.model()
    with torch.no_grad():
        moved.model.visual.patch_embed.proj.weight[0] += 1e-3
    turned.config.text_config.rms_norm_eps = 1e-3
    for other in (moved, turned):
        with pytest.raises(CheckpointError, match="step-000050 was trained from another model"):
            require_base(identify_base(other, config), base, Path("step-000050"))
