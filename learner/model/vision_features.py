"""What a frozen vision tower makes of a picture, in place of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.types import ImageFeatures

if TYPE_CHECKING:
    pass


ENGINE_TAKES_FEATURES = frozenset(
    {"qwen2_vl", "qwen2_5_vl"}
)  # families whose engine takes features as its tower makes them


def compute_features(model: Any, images: Sequence[ImageFeatures]) -> list[ImageFeatures]:
    """What the tower of `model` makes of each prompt's pictures: image_embeds (image tokens, hidden), float32.

    One prompt at a time: what else is new decides nothing, so a resumed run, which begins with no features, gets the
    same bits.
    """
    return [_compute(model, features) for features in images]


def _compute(model: Any, features: ImageFeatures) -> ImageFeatures:
    pixels, grid = features.values["pixel_values"], features.values["image_grid_thw"]
    with torch.no_grad():
        made = model.get_image_features(
            torch.from_numpy(np.array(pixels)).to(model.device), torch.from_numpy(np.array(grid)).to(model.device)
        )
    embeds = torch.cat(list(made.pooler_output)).float().cpu().numpy()
    return ImageFeatures(digest=f"{features.digest}-tower", values={"image_embeds": embeds, "image_grid_thw": grid})
