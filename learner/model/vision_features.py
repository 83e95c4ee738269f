"""The features that a frozen vision tower makes of a picture, computed once and used in place of its pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from common.types import ImageFeatures

ENGINE_TAKES_FEATURES = frozenset({"qwen2_vl", "qwen2_5_vl"})  # families whose engine can be given features


def compute_features(model: Any, images: Iterable[ImageFeatures]) -> list[ImageFeatures]:
    """Return the features of each prompt's pictures: image_embeds (image tokens, width), float32.

    Each prompt is computed alone. A resumed run, which has other pictures to compute at other times, gets the same
    bits.
    """
    return [_compute(model, features) for features in images]


def _compute(model: Any, features: ImageFeatures) -> ImageFeatures:
    pixels, grid = features.values["pixel_values"], features.values["image_grid_thw"]
    with torch.no_grad():
        outputs = model.get_image_features(
            torch.from_numpy(np.array(pixels)).to(model.device), torch.from_numpy(np.array(grid)).to(model.device)
        )
    embeds = torch.cat(list(outputs.pooler_output)).float().cpu().numpy()
    return ImageFeatures(digest=f"{features.digest}-tower", values={"image_embeds": embeds, "image_grid_thw": grid})
