"""What ranks make and others need after them: weights and vision features, as objects of Ray's that the driver owns.

What a process puts into the object store dies with it. What a call returns belongs to the caller, so it outlives the
process that made it, for as long as the node is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common.object_store import BY_VALUE
from common.placement import get
from common.types import ImageFeatures, Images, SharedFeatures, WeightBucket, WeightManifest
from learner.trainer.recovery.ring import RankRing


class OwnedWeights:
    """Publishes the weights of the ranks in buckets of bytes. Those that no step changes are gathered once."""

    def __init__(self) -> None:
        self._fixed: dict[int, WeightBucket] = {}  # by number
        self._by: Sequence[Any] = ()  # the ranks that they are of

    def publish(self, ring: RankRing, version: int, *, timeout_s: float) -> WeightManifest:
        """Return the full set of weights as they are now."""
        return ring.run(lambda ranks: self._publish(ring, ranks, version, timeout_s))

    def _publish(self, ring: RankRing, ranks: Sequence[Any], version: int, timeout_s: float) -> WeightManifest:
        if ranks is not self._by:
            self._fixed, self._by = {}, ranks
        info = ring.infos[0]
        new = [number for number in range(len(info.buckets)) if number not in self._fixed]
        calls = [[rank.pack_weights.options(num_returns=2).remote(number) for rank in ranks] for number in new]
        tables = get([table for sent in calls for table, _ in sent], what="weights to publish", timeout_s=timeout_s)

        found = dict(self._fixed)
        for number, sent, table in zip(new, calls, tables[:: len(ranks)], strict=True):
            _, payload = sent[0]  # only rank 0 has one
            found[number] = replace(table, payload=payload)
        self._fixed = {number: bucket for number, bucket in found.items() if bucket.kind != "changing"}
        buckets = tuple(found[number] for number in sorted(found))
        return WeightManifest(version=version, buckets=buckets, vision_unchanged=info.vision_unchanged)


def compute_owned_features(
    ring: RankRing, images: Sequence[Images], *, timeout_s: float
) -> list[ImageFeatures | SharedFeatures]:
    """Return the vision features of each prompt's pictures, in order; large ones stay in the object store."""
    return ring.run(lambda ranks: _compute(ranks, images, timeout_s))


def _compute(ranks: Sequence[Any], images: Sequence[Images], timeout_s: float) -> list[ImageFeatures | SharedFeatures]:
    count = len(ranks)
    most = -(-len(images) // count)  # ZeRO-3 wants all ranks to run the vision tower equally often
    shares = [(*images[rank::count], *images[:1])[:most] for rank in range(count)]
    calls = [
        rank.vision_features.options(num_returns=1 + most).remote(share)
        for rank, share in zip(ranks, shares, strict=True)
    ]
    what = "the features of a frozen vision tower"
    outlines = get([outline for outline, *_ in calls], what=what, timeout_s=timeout_s)

    def find(index: int) -> ImageFeatures | SharedFeatures:
        """Return the features of a picture; a small one travels faster inside a message."""
        (digest, nbytes), ref = outlines[index % count][index // count], calls[index % count][1 + index // count]
        if nbytes > BY_VALUE:
            return SharedFeatures(digest=digest, nbytes=nbytes, ref=ref)
        (features,) = get([ref], what=what, timeout_s=timeout_s)
        return features  # type: ignore[no-any-return]

    return [find(index) for index in range(len(images))]
