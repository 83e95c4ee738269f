"""Ranks read the pictures that the driver left unread, and say whose picture cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from common.config.schema import Config
from common.errors import DataError
from common.types import Completion, Group, ImageFeatures, Prompt, ScoredGroup, SharedFeatures, UnreadPicture
from learner.trainer.group import LearnerGroup
from tests.helpers.makers import noise
from tests.helpers.policy import Policy

pytestmark = pytest.mark.engine


def make_group(prompt: Prompt) -> ScoredGroup:
    ids = prompt.text_ids[-8:-5]  # words of its question
    one = Completion(token_ids=tuple(ids), logprobs=(-1.0, -2.0, -3.0), text="", finish_reason="stop")
    group = Group(
        prompt_id=prompt.id, completions=(one, one), origin="sampled", seed=1, engine_id="test", weights_version=0
    )
    return ScoredGroup(prompt=prompt, group=group, rewards_by_name={"test": (0.0, 1.0)}, rewards=(0.0, 1.0))


def fetch(images: ImageFeatures | SharedFeatures) -> ImageFeatures:
    found = ray.get(images.ref) if isinstance(images, SharedFeatures) else images
    assert isinstance(found, ImageFeatures)
    return found


def test_a_rank_reads_pictures_as_the_driver_would(ray_session: None, random_qwen2vl: Path) -> None:
    config = Config.model_validate(
        {
            "model": {"path": str(random_qwen2vl), "dtype": "float32", "freeze_vision": True},
            "rollout": {"gpus_per_engine": 0},
            "learner": {"cpus_per_rank": 0.1, "gpus_per_rank": 0, "zero_stage": 1, "max_logprob_gap": None},
            "cluster": {"device": "cpu"},
        }
    )
    policy = Policy(random_qwen2vl)
    files = [noise((168, 224), seed=number) for number in range(3)]
    handed = [policy.prompt_of_file(number, data) for number, data in enumerate(files)]
    unread = [policy.prompt_of_file(number, data, reads=False) for number, data in enumerate(files)]
    broken = policy.prompt_of_file(3, files[0][:5000], reads=False)
    assert all(isinstance(prompt.images, UnreadPicture) for prompt in [*unread, broken])
    learner = LearnerGroup(config, model_path=str(random_qwen2vl), banned=policy.banned, steps=4)
    try:
        learner.ready(180)
        assert learner.logprobs([*map(make_group, handed)]) == learner.logprobs([*map(make_group, unread)])

        # The tower's features, which stand for pixels where it is frozen.
        made = [learner.vision_features([prompt.images for prompt in prompts]) for prompts in (handed, unread)]  # type: ignore[misc]
        for one, other in zip(*made, strict=True):
            np.testing.assert_array_equal(fetch(one).values["image_embeds"], fetch(other).values["image_embeds"])

        # Neither loses a rank.
        with pytest.raises(DataError, match="the picture of test/3"):
            learner.step([make_group(broken)], at=0)
        with pytest.raises(DataError, match="the picture of test/3"):
            learner.vision_features([broken.images])  # type: ignore[list-item]
        assert learner.builds == 1
        assert learner.logprobs([make_group(unread[0])]) == learner.logprobs([make_group(handed[0])])
    finally:
        learner.close()
