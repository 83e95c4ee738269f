"""Transfer of weights from the learner to the engines, over the object store or NCCL (`weights.transport`)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from common.errors import DeadlineError, describe_cause
from common.types import WeightManifest
from learner.trainer.group import LearnerGroup
from rollout.fleet.fleet import RolloutFleet

LEAST_S, S_PER_GB = 60.0, 10.0  # that a broadcast may take: a network of 1 Gb/s has it done
BYTES = {"float32": 4, "bfloat16": 2}


class WeightSync:
    """Brings the two halves of a transfer together.

    The object store needs no more than a manifest. NCCL needs a group of the learner and of engines: an epoch. Whenever
    engines come or go, the next broadcast begins another one. Where an engine does not come, or is lost in the middle
    of a broadcast, all engines get these weights as bytes.
    """

    def __init__(
        self, learner: LearnerGroup, fleet: RolloutFleet, *, nccl: bool, on_event: Callable[..., None]
    ) -> None:
        self._learner, self._fleet, self._nccl, self._event = learner, fleet, nccl, on_event
        self._epoch: tuple[object, ...] = ()  # how often ranks were built, and the engines of the group
        self._version = 0
        self._limit_s = 0.0  # of a join or a broadcast, and never more than `weights.timeout_s`
        if nccl:
            fleet.copy_of_weights = lambda: learner.copy(self._version)

    def publish(self, version: int) -> str | None:
        """Load the current weights of the learner into every serving engine, as `version`. Return their checksum."""
        manifest = self._learner.publish(version)
        self._version = version
        if self._nccl:
            if self._broadcast(manifest):
                return None  # NCCL checks what it carries
            manifest = self._learner.copy(version)
        self._fleet.publish(manifest)
        return manifest.checksum

    def _broadcast(self, manifest: WeightManifest) -> bool:
        """Send weights by NCCL. Return False, after an event, where that cannot be done in time."""
        import ray

        engines = tuple(self._fleet.list_responsive())  # a broadcast waits for the dead too
        self._limit_s = LEAST_S + S_PER_GB * _count_gb(manifest)
        why = "no engine answers" if not engines else None
        if engines and (epoch := (self._learner.builds, *engines)) != self._epoch:
            self._epoch = ()
            try:
                self._fleet.join(self._begin_epoch(engines), engines, timeout_s=self._limit_s)
                self._epoch = epoch
            except (DeadlineError, ray.exceptions.RayError) as error:
                why = describe_cause(error)
                self._fleet.call_off(manifest.version)
        if why is None:
            if self._fleet.broadcast(manifest, lambda: self._learner.broadcast(manifest.version, self._limit_s)):
                return True
            why = f"it was not done in {self._limit_s:.0f} s, or an engine was lost in it"
        self._epoch = ()
        self._event("broadcast_failed", version=manifest.version, why=why)
        return False

    def _begin_epoch(self, engines: tuple[str, ...]) -> dict[str, Any]:
        return self._learner.nccl_rendezvous(1 + len(engines), self._limit_s)


def _count_gb(manifest: WeightManifest) -> float:
    entries = [entry for bucket in manifest.buckets for entry in bucket.entries]
    return sum(prod(entry.shape) * BYTES[entry.dtype] for entry in entries) / 1e9
