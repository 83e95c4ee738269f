"""The steps that engines sample before the learner comes to them: `rollout.max_lag` of them at most.

The batch of step s is asked once the learner holds version max(0, s - max_lag), and is sampled with those weights,
whatever the engines do and whenever they are done. So a run's tokens depend on no clock (law 5). With a lag of 1:

    engines   | batch 0, v0 | batch 1, v0 | batch 2, v1 | batch 3, v2 |
    learner                 | learn 0: v1 | learn 1: v2 | learn 2: v3 |

A checkpoint waits for the batches that are on their way, and keeps their groups: the weights that sample them are gone
when the run is resumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.types import Prompt
from learner.driver.control.answers import Outcome, read_outcome, write_outcome
from rollout.fleet.batch import Batch

Drawn = Sequence[tuple[Prompt, int]]  # prompts, each with the epoch it was drawn in


@dataclass(slots=True, eq=False)
class AskedStep:
    """The prompts of a step, and what engines have answered so far."""

    number: int  # of the step it is asked for; the seeds of its requests follow from it
    drawn: Drawn
    batches: Sequence[
        Batch
    ] = ()  # on their way, one a range of prompts; none where a checkpoint or a journal had all answers
    answers: dict[str, Outcome] = field(default_factory=dict)  # by prompt id, in the order in which they came
    journal: Path | None = None  # that had all answers

    def take(self, receive: Callable[[Batch], Iterator[Outcome]]) -> Iterator[Outcome]:
        """Yield the answer to every sampled prompt: first those that are there, then the others as they come."""
        yield from list(self.answers.values())
        for batch in self.batches:
            for outcome in receive(batch):
                self.answers[outcome.prompt_id] = outcome
                yield outcome

    def has_answer(self, wait_s: float) -> bool:
        """Say whether `take` has another answer within so many seconds."""
        batch = next((one for one in self.batches if one.taken < one.size), None)
        return batch is not None and batch.has_answer(wait_s=wait_s)

    @property
    def recalled(self) -> bool:
        """Whether no engine of this start sampled it: a checkpoint or a journal had its answers."""
        return bool(self.answers) and not self.batches

    def list_drawn(self) -> list[tuple[str, int]]:
        """List the ids of its prompts, each with the epoch it was drawn in."""
        return [(prompt.id, epoch) for prompt, epoch in self.drawn]


class Lookahead:
    """The steps that were asked and not yet learned, the oldest first."""

    def __init__(self, *, steps: int, max_lag: int) -> None:
        """Begin with none.

        Args:
            steps: of the whole run. No batch is asked for a later one.
        """
        self._steps, self._max_lag = steps, max_lag
        self.asked: deque[AskedStep] = deque()

    def list_missing(self, step: int) -> Iterator[int]:
        """Yield the numbers of the steps to ask before `step` is taken, each once the one before is asked."""
        while len(self.asked) <= self._max_lag:
            number = self.asked[-1].number + 1 if self.asked else step
            if self.asked and number >= self._steps:
                return
            yield number

    def state(self, asked: Sequence[AskedStep], receive: Callable[[Batch], Iterator[Outcome]]) -> list[dict[str, Any]]:
        """Return, for a checkpoint, what was asked, once all of it is answered."""
        return [
            {
                "number": one.number,
                "drawn": one.list_drawn(),
                "answers": [write_outcome(outcome) for outcome in one.take(receive)],
            }
            for one in asked
        ]

    def restore(
        self, state: Sequence[Mapping[str, Any]], recall: Callable[[Sequence[tuple[str, int]]], Sequence[Prompt]]
    ) -> None:
        """Go on with what a checkpoint holds.

        Args:
            recall: makes the prompts again, from their ids and epochs.
        """
        self.asked.clear()
        for row in state:
            visits = [(str(name), int(epoch)) for name, epoch in row["drawn"]]
            drawn = [(prompt, epoch) for prompt, (_, epoch) in zip(recall(visits), visits, strict=True)]
            answers = [read_outcome(one) for one in row["answers"]]
            by_id = {one.prompt_id: one for one in answers}
            self.asked.append(AskedStep(number=row["number"], drawn=drawn, answers=by_id))
