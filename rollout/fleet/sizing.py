"""How many engines a fleet wants, and which of them leave when it wants fewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.config.schema import RolloutConfig
from rollout.command_file import read_command
from rollout.fleet.member import Member

GROW_ABOVE, GROW_AFTER = 0.25, 3  # share of a step in which the learner waits; such steps in a row
SHRINK_BELOW, SHRINK_AFTER = 0.05, 20
MOST_PATIENCE = 640  # steps
STUCK_S = 5.0  # an engine that made no step for so long leaves before one that works


@dataclass(frozen=True, slots=True)
class Sizing:
    """The engines that are wanted by the wait share, and what speaks for another number."""

    wanted: int
    slow_steps: int = 0  # in a row, in which the learner waited for long
    idle_steps: int = 0  # in a row, in which it hardly waited
    patience: int = SHRINK_AFTER  # idle steps after which an engine may go
    shrunk: bool = False  # the last change was one engine less


def follow_wait_share(now: Sizing, share: float, *, least: int, most: int) -> Sizing:
    """Return how many engines are wanted after another step.

    The number grows by half after 3 steps that waited for more than a quarter of their time, and falls by one after
    20 that hardly waited. Where the one that went is missed, the next must be idle for twice as long. So the number
    comes to rest:

        1 engine, waits .6 .6 .6 -> 2, waits .4 .4 .4 -> 3, waits .1 .1 ... -> 3

    Args:
        share: seconds that the learner waited for groups, of the step's.
    """
    slow = now.slow_steps + 1 if share > GROW_ABOVE else 0
    idle = now.idle_steps + 1 if share < SHRINK_BELOW else 0
    if slow >= GROW_AFTER and now.wanted < most:
        patience = min(2 * now.patience, MOST_PATIENCE) if now.shrunk else now.patience
        return Sizing(min(most, now.wanted + (now.wanted + 1) // 2), patience=patience)
    if idle >= now.patience and now.wanted > least:
        return Sizing(now.wanted - 1, patience=now.patience, shrunk=True)
    return Sizing(now.wanted, slow, idle, now.patience, now.shrunk)


def choose_leavers(members: Sequence[Member], count: int, *, now: float) -> list[Member]:
    """Choose engines that leave: first those without a place, then those that start, that are stuck, the newest.

    Args:
        now: on the monotonic clock.
    """

    def rank(at: int) -> tuple[int, int]:
        member = members[at]
        if member.handle is None:
            return 0, -at
        if member.state == "starting":
            return 1, -at
        return 2 if member.stream and now - member.seen > STUCK_S else 3, -at

    return [members[at] for at in sorted(range(len(members)), key=rank)[: max(0, count)]]


class WantedSize:
    """The engines that a run wants: as many as a command says, else as the learner's wait share does."""

    def __init__(self, rollout: RolloutConfig, *, on_event: Callable[..., None]) -> None:
        self._rollout, self._event = rollout, on_event
        self._sizing = Sizing(rollout.min_engines)
        self._command: int | None = None
        self.read = ""  # the last command, as it was written
        self.refused = ""  # why it is not followed

    @property
    def engines(self) -> int:
        """How many there should be."""
        return self._sizing.wanted if self._command is None else self._command

    def observe(self, wait_share: float, *, serving: int) -> None:
        """Note how long the learner waited in a step, if all engines that are wanted were there."""
        if self._command is not None or serving < self._sizing.wanted:
            return
        least, most = self._rollout.min_engines, self._rollout.max_engines
        before, self._sizing = self._sizing, follow_wait_share(self._sizing, wait_share, least=least, most=most)
        if self._sizing.wanted != before.wanted:
            self._event("engines_wanted", engines=self._sizing.wanted, by=f"a wait share of {wait_share:.2f}")

    def command(self, text: str) -> None:
        """Follow a command from now on. One that cannot be followed is an event, and changes nothing."""
        before = self.engines
        self.read, self.refused = text, ""
        try:
            self._command = read_command(text, self._rollout.engines)
        except ValueError as error:
            self.refused = str(error)
            self._event("engines_refused", why=self.refused)
            return
        if self._command is None:
            self._sizing = Sizing(min(max(before, self._rollout.min_engines), self._rollout.max_engines))
        if self.engines != before:
            self._event("engines_wanted", engines=self.engines, by="a command")
