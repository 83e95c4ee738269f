"""A cache of vision features: a vision tower that is not trained reads each picture once.

Learner, reference and engine have that tower in common, so all of them take its features in place of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from common.lru import ByteLRU
from common.types import ImageFeatures, Prompt, SharedFeatures

if TYPE_CHECKING:
    from learner.trainer.group import LearnerGroup


class VisionCache:
    """Replaces pixels by features, which the learner's ranks compute; the features used last are kept."""

    def __init__(self, learner: LearnerGroup, *, cache_bytes: int) -> None:
        self._learner = learner
        self._seen: ByteLRU[str, ImageFeatures | SharedFeatures] = ByteLRU(cache_bytes)

    def clear(self) -> None:
        """Forget all features: what held them may be lost."""
        self._seen.clear()

    def with_features(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Return the prompts with features in place of pixels. New pictures are computed in one call."""
        pictures = {prompt.images.digest: prompt.images for prompt in prompts if prompt.images}
        found = {digest: self._seen.get(digest) for digest in pictures}
        new = [digest for digest, features in found.items() if features is None]
        made = self._learner.vision_features([pictures[digest] for digest in new]) if new else []
        for digest, features in zip(new, made, strict=True):
            found[digest] = features
            self._seen.put(digest, features, features.nbytes)
        return [replace(prompt, images=found[prompt.images.digest] if prompt.images else None) for prompt in prompts]
