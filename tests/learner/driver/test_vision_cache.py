"""Features of a frozen tower stand for pixels: same log-probs, same gradient, computed once a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from common.types import ImageFeatures, Prompt, ScoredGroup
from learner.driver.vision_cache import VisionCache
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.pack import build_pack
from learner.model.vision_features import compute_features
from tests.helpers import tiny
from tests.helpers.oracle import gradient, relative_error


def loss_and_gradient(model: Any, groups: Sequence[ScoredGroup], *, tower_runs: bool) -> tuple[Any, Any]:
    model.zero_grad()
    pack = build_pack(groups, model, banned=(), tower_runs=tower_runs)
    logp = packed_logprobs(model, pack, ScoringSpec()).logp
    torch.autograd.backward(logp.mean())
    return logp.detach(), gradient(model)


def featured(model: Any, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    prompts = [scored.prompt for scored in groups]
    images = [prompt.images for prompt in prompts if isinstance(prompt.images, ImageFeatures)]
    made = iter(compute_features(model, images))
    swapped = [replace(prompt, images=next(made) if prompt.images else None) for prompt in prompts]
    return [replace(scored, prompt=prompt) for scored, prompt in zip(groups, swapped, strict=True)]


@pytest.mark.parametrize("family", get_args(tiny.Family))
def test_features_stand_for_pixels(family: tiny.Family) -> None:
    model = tiny.model(family)
    model.model.visual.requires_grad_(False)
    groups = tiny.ragged()
    wanted, wanted_gradient = loss_and_gradient(model, groups, tower_runs=True)
    found, found_gradient = loss_and_gradient(model, featured(model, groups), tower_runs=False)
    assert (found - wanted).abs().max() < 2e-6
    assert relative_error(found_gradient, wanted_gradient) < 1e-6


def test_a_pack_without_pictures_needs_no_blank_one() -> None:
    model = tiny.model()
    groups = [tiny.group(3, text=12, pictures=[], lengths=[2, 2, 6])]
    assert not build_pack(groups, model, banned=(), tower_runs=False).images
    wanted, _ = loss_and_gradient(model, groups, tower_runs=True)
    found, _ = loss_and_gradient(model, groups, tower_runs=False)
    assert (found - wanted).abs().max() < 2e-6


class Learner:
    """Counts the pictures it is asked for."""

    def __init__(self) -> None:
        self.model = tiny.model()
        self.asked: list[int] = []

    def vision_features(self, images: Sequence[ImageFeatures]) -> list[ImageFeatures]:
        self.asked.append(len(images))
        return compute_features(self.model, images)


def test_a_picture_is_computed_once_and_the_cache_is_bounded() -> None:
    prompts: list[Prompt] = [scored.prompt for scored in tiny.ragged()]  # four of the five have pictures
    learner: Any = Learner()
    tower = VisionCache(learner, cache_bytes=1 << 20)
    first, again = tower.with_features([prompts[0], *prompts]), tower.with_features(prompts[::-1])
    assert learner.asked == [4]
    assert [prompt.id for prompt in again] == [prompt.id for prompt in prompts[::-1]]
    assert all(one.images is other.images for one, other in zip(first[1:], again[::-1], strict=True))
    forgetful = VisionCache(learner, cache_bytes=1000)
    forgetful.with_features(prompts)
    forgetful.with_features(prompts)
    assert 0 < learner.asked[-1] < 4
