"""What a rank is sent for one forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.object_store import fetch_features
from common.types import ScoredGroup
from learner.trainer.loss_terms import LossTerm


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPack:
    """The groups of one forward and backward."""

    groups: tuple[ScoredGroup, ...]
    real: bool  # False: a filler with weight 0, which keeps the ranks in step
    term: LossTerm | None = None  # the loss they train; None: they are only scored
    advantages: tuple[tuple[float, ...], ...] | None = None  # (G,) of each group; None: they are only scored


def without_picture(scored: ScoredGroup) -> ScoredGroup:
    """Return what a rank needs of a group: image features, but neither the picture nor the columns of its row."""
    example = replace(scored.prompt.example, image=None, columns={})
    return replace(scored, prompt=replace(scored.prompt, example=example))


def fetch_images(packs: Sequence[RankPack], *, timeout_s: float) -> list[RankPack]:
    """Return the same packs with image features in place of their references."""
    handles = [scored.prompt.images for pack in packs for scored in pack.groups]
    images = iter(fetch_features(handles, timeout_s=timeout_s))
    fetched = []
    for pack in packs:
        groups = tuple(replace(one, prompt=replace(one.prompt, images=next(images))) for one in pack.groups)
        fetched.append(replace(pack, groups=groups))
    return fetched
