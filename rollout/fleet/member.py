"""An engine as the fleet knows it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from common.process import CONTROL
from common.types import GenerationRequest, WeightManifest
from rollout.fleet.batch import Batch
from rollout.spec import EngineInfo

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

State = Literal["starting", "serving", "draining", "retired", "lost"]
LIFELINE = "lifeline"  # Ray's concurrency group of an engine for the call that ends with it


class Load(NamedTuple):
    """An engine holds other weights from now on."""

    engine: str
    version: int
    checksum: str | None  # of their bytes, as the engine found them; None where they came by NCCL


@dataclass(slots=True, eq=False)
class Stream:
    """Groups on their way from one engine, of one batch; more requests may be sent while it runs."""

    number: int  # of this engine's streams: what is sent for another one is passed over
    batch: Batch
    owed: dict[str, GenerationRequest] = field(default_factory=dict)  # by prompt id
    sent_at: dict[str, float] = field(default_factory=dict)  # by prompt id, on the monotonic clock
    sent: int = 0  # requests
    share: int = 0  # of them, the last time
    ending: bool = False  # nothing more is sent
    updates: dict[int, WeightManifest] = field(default_factory=dict)  # by version: sent, and not loaded yet


@dataclass(slots=True, eq=False)
class Member:
    """An engine of the fleet."""

    id: str
    fruitless: int  # engines that were lost in its place before it, one after the other, without a single group
    place: PlacementGroup | None
    placed: bool  # has its place, and waits for none
    node: str | None = None  # Ray's id of its node, once it has its place
    handle: Any = None  # of the actor; None until it has its place
    state: State = "starting"
    info: EngineInfo | None = None  # once it is up
    held: WeightManifest | None = None  # the weights it serves
    checksum: str | None = None  # of their bytes, as it found them
    stream: Stream | None = None  # what it samples now
    copies: tuple[Batch, list[GenerationRequest]] | None = None  # of what a slow engine owes, to sample next
    grouped: bool = False  # is in the learner's NCCL group
    broadcast: WeightManifest | None = None  # that it takes part in, before anything else
    streams: int = 0
    longest_wait: float | None = None  # seconds from sending to answer, in its last stream
    served: int = 0  # groups
    evicted_at: float | None = None  # when its node goes, on the monotonic clock; None: it stays
    heard: float = field(default_factory=time.monotonic)  # when it last answered, or began to sample
    seen: float = field(default_factory=time.monotonic)  # when it last was idle, or had made a step
    steps: int = 0  # that it had made when somebody last looked
    news: asyncio.Event = field(default_factory=asyncio.Event)  # something may be there to do
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # it is up, or lost
    dismissed: asyncio.Event = field(default_factory=asyncio.Event)  # it leaves, whatever it does
    fault: str = ""  # why it is given up, whatever it does
    condemned: asyncio.Event = field(default_factory=asyncio.Event)  # there is a fault
    task: Any = None

    def condemn(self, fault: str) -> None:
        """Let it be lost, for a reason."""
        self.fault = self.fault or fault
        self.condemned.set()

    def call(self, method: str, *args: Any, group: str = CONTROL) -> Any:
        """Call a method of the engine beside what it does, and return the reference of its value."""
        return getattr(self.handle, method).options(concurrency_group=group).remote(*args)
