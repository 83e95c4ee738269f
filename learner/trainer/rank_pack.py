"""What a rank is sent for one forward and backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from common.models.pictures import PictureReader
from common.object_store import fetch_features
from common.types import ScoredGroup
from learner.trainer.loss_terms import LossTerm
from learner.trainer.microbatches import Microbatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPack:
    """The groups of one forward and backward."""

    groups: tuple[ScoredGroup, ...]
    real: bool  # False: a filler with weight 0, which keeps the ranks in step
    term: LossTerm | None = None  # the loss they train; None: they are only scored
    advantages: tuple[tuple[float, ...], ...] | None = None  # (G,) of each group; None: they are only scored


def pack_groups(
    scored: Sequence[ScoredGroup],
    dealt: Sequence[Sequence[Microbatch]],
    term: LossTerm | None = None,
    compared: Mapping[str, tuple[float, ...]] | None = None,
) -> list[list[RankPack]]:
    """Return the packs of each rank, as they are sent to it.

    Args:
        compared: advantages of the groups by prompt id, if they are learned from as sampled ones.
    """
    slim = [without_picture(group) for group in scored]

    def pack(micro: Microbatch) -> RankPack:
        groups = tuple(slim[index] for index in micro.groups)
        sampled = term is not None and term.sampled and compared is not None
        advantages = tuple(compared[one.prompt.id] for one in groups) if sampled and compared else None
        return RankPack(groups=groups, real=micro.real, term=term, advantages=advantages)

    return [[pack(micro) for micro in micros] for micros in dealt]


def without_picture(scored: ScoredGroup) -> ScoredGroup:
    """Return what a rank needs of a group: image features, but neither the picture nor the columns of its row."""
    example = replace(scored.prompt.example, image=None, columns={})
    return replace(scored, prompt=replace(scored.prompt, example=example))


def open_images(groups: Sequence[ScoredGroup], pictures: PictureReader, *, timeout_s: float) -> list[ScoredGroup]:
    """Return the same groups with image features in place of their references, and of pictures that are unread."""
    images = fetch_features([scored.prompt.images for scored in groups], timeout_s=timeout_s)
    return [
        replace(scored, prompt=replace(scored.prompt, images=pictures.open(own)))
        for scored, own in zip(groups, images, strict=True)
    ]
