"""Answers that were sampled before: by an earlier start of this run, or in the run that it repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.data.stream import StreamState
from common.errors import DataError
from learner.driver.control.journal import Journal
from learner.driver.control.lookahead import AskedStep

if TYPE_CHECKING:
    from learner.tracking.tracker import Tracker


class Recordings:
    """The journals of a run: its own, and that of the run it repeats. There may be neither."""

    def __init__(
        self, tracker: Tracker | None = None, *, own: Journal | None = None, replay: Journal | None = None
    ) -> None:
        """
        Args:
            tracker: does the writing.
            own: None: which weights sample a token depends on no clock, so nothing is written down.
            replay: None: this run repeats none.
        """
        assert tracker or not (own or replay), "somebody must write"
        self._own, self._replay = own, replay
        self._tracker: Tracker = tracker  # type: ignore[assignment]  # never asked where there is no journal

    def begin(self, stream: StreamState) -> None:
        """Begin to write down what engines answer, where the run could not be repeated without."""
        if own := self._own:
            self._tracker.keep(lambda: own.begin(stream))

    def reopen(self) -> None:
        """Find what this start has written so far too: it goes back to an earlier step."""
        if self._own:
            self._tracker.keep(self._own.reopen)

    def recall(self, asked: AskedStep) -> bool:
        """Give a step the answers that it had before. Return whether there are any.

        Raises:
            DataError: in the run that this one repeats the step had other prompts.
        """
        for journal in filter(None, (self._own, self._replay)):
            answers = journal.find(asked.number, asked.list_drawn())
            if answers is not None:
                asked.answers, asked.journal = answers, journal.path
                return True
        if self._replay and asked.number == self._replay.steps:
            self._tracker.event("replay_ended", step=asked.number)
        elif self._replay and asked.number < self._replay.steps:
            raise DataError(
                f"this run parts from the one it repeats at step {asked.number}",
                got=f"{self._replay.path} has other prompts there",
                remedy="repeat it with the version that wrote it (environment.json there has the git sha)",
            )
        return False

    def keep(self, asked: AskedStep) -> None:
        """Write down the answers of a step, if they did not come from this run's own journal."""
        if (own := self._own) and asked.journal != own.path:
            drawn, answers = asked.list_drawn(), list(asked.answers.values())
            self._tracker.keep(lambda: own.append(asked.number, drawn, answers))
