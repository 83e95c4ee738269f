"""The quicker tower gives the numbers of the one that transformers wrote."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from learner.model.attention import install
from learner.model.vision_tower import PatchProjection, QuickGELU, attend_pictures, speed_up_vision_tower
from tests.helpers import tiny

ENDS = (0, 4, 8, 9, 20, 31, 33)  # two alike, one alone, two alike, one more


def test_patches_are_projected_as_by_the_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4), bias=False))
    patches = torch.randn(7, 3, 2, 4, 4)
    wanted = model(patches)
    slope = torch.randn_like(wanted)
    (of_weight,) = torch.autograd.grad(wanted, list(model.parameters()), slope)
    speed_up_vision_tower(model)
    assert isinstance(model[0], PatchProjection)
    found = model(patches)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    (found_of_weight,) = torch.autograd.grad(found, list(model.parameters()), slope)
    torch.testing.assert_close(found_of_weight, of_weight, rtol=1e-5, atol=1e-5)
    assert model(torch.randn(1, 3, 4, 8, 8)).shape == (1, 5, 2, 2, 2), "anything larger than a patch is convolved"


def test_quick_gelu_and_its_slope() -> None:
    plain, model = QuickGELUActivation(), nn.Sequential(QuickGELUActivation())
    speed_up_vision_tower(model)
    assert isinstance(model[0], QuickGELU)
    given = torch.linspace(-30, 30, 601, requires_grad=True)
    wanted, found = plain(given), model(given)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    weight = torch.linspace(1, 2, 601)
    (slope,) = torch.autograd.grad(wanted, given, weight)
    torch.testing.assert_close(torch.autograd.grad(found, given, weight)[0], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_pictures_of_any_sizes_are_each_over_themselves(dtype: torch.dtype, tolerance: float) -> None:
    size = ENDS[-1]
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, size, 2, 8, generator=draw).to(dtype).transpose(1, 2) for _ in range(3))
    key = key + 3  # what the softmax ignores must not be rounded into it
    picture = torch.bucketize(torch.arange(size), torch.tensor(ENDS[1:]), right=True)
    mask = picture[:, None] == picture
    wanted = nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=mask, scale=0.4
    ).transpose(1, 2)
    found, _ = attend_pictures(
        None, query, key, value, scaling=0.4, cu_seq_lens_q=torch.tensor(ENDS), max_length_q=11, dropout=0.0
    )
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_the_tower_as_a_whole(family: tiny.Family) -> None:
    """Pictures of several sizes, windows too, through `install`."""
    model: Any = tiny.model(family)
    values = [scored.prompt.features for scored in tiny.ragged() if scored.prompt.images]
    pixels, grids = (
        torch.cat([torch.tensor(value[name]) for value in values]) for name in ("pixel_values", "image_grid_thw")
    )

    def features() -> Tensor:
        made: Tensor = model.model.visual(pixels, grid_thw=grids).pooler_output
        return made

    wanted = features()
    install(model, "auto")
    torch.testing.assert_close(features(), wanted, rtol=0, atol=1e-5)
