"""The hang doctor: where nothing moves for `cluster.hang_s`, it says who waits for whom, and keeps all stacks.

It changes nothing: engines, ranks and reward workers that hang are replaced by those who look after them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from common.process import ActorView, ThreadReport, describe_threads
from learner.driver.hang.sights import Sight, look_at
from learner.driver.hang.wait import Part, Wait, find_wait
from learner.guard.line import takes_output

TICK_S = 0.5
MOST_NAMED = 4  # actors in the line; all are in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found of a run that stands still."""

    seconds: float  # without progress
    line: str  # "driver waits for groups: engine-0 (pid 17 on 10.0.0.9) is stopped and does not answer"
    stacks: str  # of every process


@dataclass(slots=True, kw_only=True)
class HangDoctor:
    """Looks at a run twice a second, in a thread of its own."""

    limit_s: float
    count_progress: Callable[[], object]  # returns what is another as soon as anything gets on
    list_actors: Callable[[], Mapping[Part, Sequence[ActorView]]]
    tell: Callable[[Diagnosis], None]  # by the thread
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch the run within the block."""
        threading.Thread(target=self._watch, name="hang doctor", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()

    def _watch(self) -> None:
        last, still, before, told = self.count_progress(), 0.0, time.monotonic(), False
        while not self._over.wait(TICK_S):
            now, found = time.monotonic(), self.count_progress()
            still += min(now - before, 2 * TICK_S)  # what this process slept is nobody's fault
            before = now
            if found != last or not takes_output():  # a reader may stop it, as Ctrl-S does
                last, still, told = found, 0.0, False
            elif still >= self.limit_s and not told:
                told = True
                diagnosis = self.diagnose(still)
                if self.count_progress() == last and not self._over.is_set():
                    self.tell(diagnosis)

    def diagnose(self, seconds: float) -> Diagnosis:
        """Look at the driver and at every actor."""
        main = threading.main_thread().ident
        wait = find_wait(sys._current_frames().get(main or 0))  # noqa: SLF001  # no other way to see another thread
        own, actors = describe_threads(), self.list_actors()
        sights = look_at([one for part in actors.values() for one in part])
        waited_for = {one.name for one in actors.get(wait.part, ())} if wait.part else set()
        line = describe_wait(wait, [one for one in sights if one.name in waited_for])
        return Diagnosis(seconds=seconds, line=line, stacks=_write_stacks(line, own, sights))


def describe_wait(wait: Wait, sights: Sequence[Sight]) -> str:
    """Say in one line who waits for whom.

    Those that do not answer come first: ranks wait for one another, and so all of them owe.

    Args:
        sights: of the part that is waited for.
    """
    if wait.part is None:
        return f"driver waits for nobody, it is at {wait.what}"
    if wait.part == "data":
        return f"driver waits for {wait.what}"
    owing = sorted((one for one in sights if one.owes or not one.answers), key=lambda one: (one.answers, not one.owes))
    if not owing:
        return f"driver waits for {wait.what}, and nobody owes any"
    more = len(owing) - MOST_NAMED
    named = [str(one) for one in owing[:MOST_NAMED]] + ([f"{more} more"] if more > 0 else [])
    return f"driver waits for {wait.what}: {'; '.join(named)}"


def _write_stacks(line: str, own: ThreadReport, sights: Sequence[Sight]) -> str:
    parts = [f"==== {time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n", f"== driver\n{own.text}"]
    parts += [f"== {one}\n{one.stacks}" for one in sights]
    return "\n".join(parts) + "\n"
