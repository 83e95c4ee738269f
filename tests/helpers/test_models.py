"""The random models are what the other tests take them for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.schema import DataConfig, ModelConfig
from common.models.processor import load_model_config, load_processor
from common.models.prompts import PromptEncoder
from common.types import Example
from tests.helpers.models import Architecture, build_random_model


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl"])
def test_random_model_sees_images_of_any_size(tmp_path: Path, architecture: Architecture) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    path = ModelConfig(path=str(build_random_model(tmp_path / "model", seed=1, architecture=architecture)))
    assert load_model_config(path).model_type == architecture
    processor = load_processor(path)
    model: Any = AutoModelForImageTextToText.from_pretrained(path.path, trust_remote_code=False)
    encoder = PromptEncoder(processor, DataConfig())

    def logits(height: int, width: int, brightness: int) -> torch.Tensor:
        image = np.random.default_rng(0).integers(0, brightness, (height, width, 3), dtype=np.uint8)
        example = Example(id="test/0", problem="one or two?", image=image, label="one", columns={})
        prompt = encoder.encode(example)
        ids = torch.tensor([prompt.token_ids])
        assert prompt.token_ids.count(processor.image_token_id) == height * width // 28**2
        with torch.no_grad():
            output = model(
                input_ids=ids,
                **{name: torch.tensor(value) for name, value in prompt.features.items()},
                mm_token_type_ids=(ids == processor.image_token_id).int(),
            )
        last: torch.Tensor = output.logits[0, -1]
        return last.log_softmax(-1)

    for height, width in [(56, 56), (112, 84)]:
        bright, dark = logits(height, width, 255), logits(height, width, 128)
        assert 0.5 < bright.std() < 5  # neither flat nor sure of one token
        assert (bright - dark).abs().max() > 0.05  # the image reaches the logits


def test_same_seed_same_model(tmp_path: Path) -> None:
    weights = [
        (build_random_model(tmp_path / str(row), seed=seed) / "model.safetensors").read_bytes()
        for row, seed in enumerate((1, 1, 2))
    ]
    assert weights[0] == weights[1] != weights[2]
