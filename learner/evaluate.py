"""Greedy accuracy on held-out data, through the engines that serve the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from common.answers import is_right, is_valid
from common.candidates import candidates
from common.config import Config
from common.errors import DataError
from common.types import Example, FailedGroup, Prompt
from rollout.fleet import RolloutFleet
from rollout.requests import greedy_requests

if TYPE_CHECKING:
    from common.data.sources import ExampleSource

_CHUNK = 512  # prompts in flight: bounds the host memory of a large held-out set


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What greedy decoding got right."""

    rows: int
    right: int
    invalid: int  # answers that are none of the candidates
    per_class: dict[str, tuple[int, int]]  # label -> (right, rows)

    @property
    def accuracy(self) -> float:
        return self.right / self.rows

    @property
    def invalid_rate(self) -> float:
        return self.invalid / self.rows

    def row(self) -> dict[str, Any]:
        """As it is logged."""
        return {"accuracy": self.accuracy, "invalid_rate": self.invalid_rate, **asdict(self)}


def evaluate(
    fleet: RolloutFleet, held_out: ExampleSource, encode: Callable[[Sequence[Example]], list[Prompt]], config: Config
) -> Evaluation:
    """Decode every held-out row greedily and score it with the strict metric the reward uses.

    Raises:
        DataError: an engine refused a row (nothing is left out of an accuracy).
    """
    right: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    invalid, data = 0, config.data
    for prompt, answer in _answers(fleet, held_out, encode, config):
        example = prompt.example
        rows[example.label] += 1
        right[example.label] += is_right(
            answer, example.label, mode=data.mode, aliases=data.aliases.get(example.label, ())
        )
        invalid += not is_valid(answer, data.mode, candidates(example.problem), data.aliases)
    return Evaluation(
        rows=rows.total(),
        right=right.total(),
        invalid=invalid,
        per_class={label: (right[label], rows[label]) for label in sorted(rows)},
    )


def _answers(
    fleet: RolloutFleet, held_out: ExampleSource, encode: Callable[[Sequence[Example]], list[Prompt]], config: Config
) -> Iterator[tuple[Prompt, str]]:
    count = min(len(held_out), config.evaluation.limit or len(held_out))
    for start in range(0, count, _CHUNK):
        examples: list[Example] = [held_out[index] for index in range(start, min(start + _CHUNK, count))]
        prompts = {prompt.id: prompt for prompt in encode(examples)}
        for outcome in fleet.generate(greedy_requests(list(prompts.values()), config.rollout)):
            if isinstance(outcome, FailedGroup):
                raise DataError(
                    f"held-out row {outcome.prompt_id} cannot be evaluated",
                    got=outcome.reason,
                    remedy="mend or remove the row: an accuracy with rows left out would not be comparable",
                )
            yield prompts[outcome.prompt_id], outcome.completions[0].text
