"""Transfer of weights from the learner to the engines, over the object store or NCCL (`weights.transport`)."""

from __future__ import annotations

from learner.trainer.group import LearnerGroup
from rollout.fleet.fleet import RolloutFleet


class WeightSync:
    """Brings the two halves of a transfer together.

    The object store needs no more than a manifest. NCCL needs a group of the learner and all engines, which is made
    anew whenever an engine was replaced, and a broadcast that runs while the engines receive.
    """

    def __init__(self, learner: LearnerGroup, fleet: RolloutFleet, *, nccl: bool) -> None:
        self._learner, self._fleet, self._nccl = learner, fleet, nccl
        self._joined: tuple[str, ...] = ()
        self._version = 0
        if nccl:
            fleet.copy_of_weights = lambda: learner.copy(self._version)

    def publish(self, version: int) -> str | None:
        """Load the current weights of the learner into every serving engine, as `version`. Return their checksum."""
        manifest = self._learner.publish(version)
        self._version = version
        if not self._nccl:
            self._fleet.publish(manifest)
            return manifest.checksum
        if (engines := tuple(self._fleet.engines)) != self._joined:
            self._joined = engines
            self._fleet.join(self._learner.nccl_rendezvous(1 + len(engines)), engines)
        self._fleet.publish(manifest, meanwhile=lambda: self._learner.broadcast(version))
        return None  # NCCL checks what it carries
