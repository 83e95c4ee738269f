"""Answers and candidates find their rows, whatever order the engines give them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from common.config import cli
from common.config.schema import Config
from common.errors import DataError
from common.types import Completion, FailedGroup, GenerationRequest, Group, Prompt
from learner.driver.evaluator import Evaluator
from learner.driver.preflight.run_inputs import RunInputs, run_preflight
from learner.evaluation.measures import measure_all

WORDS = (
    "data.split=base_train",
    "data.eval_split=base_test",
    'evaluation.sets={base: "@base_test", new: "@new_test"}',
    "evaluation.limit=6",
    "evaluation.samples=3",
)


@pytest.fixture(scope="module")
def inputs() -> RunInputs:
    return run_preflight(cli.parse(WORDS).config, say=lambda line: None)


@dataclass
class FakeFleet:
    """Says the id of the prompt, and as sample k the id and k; last prompt first."""

    refuses: str = ""
    asked: list[GenerationRequest] = field(default_factory=list)

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Group | FailedGroup]:
        self.asked += requests
        for request in reversed(requests):
            if request.prompt_id == self.refuses:
                yield FailedGroup(prompt_id=request.prompt_id, reason="too hard")
                continue
            said = range(request.sampling.n)
            completions = tuple(
                Completion(token_ids=(1,), logprobs=(0.0,), text=f"{request.prompt_id}+{k}", finish_reason="stop")
                for k in said
            )
            yield Group(
                prompt_id=request.prompt_id,
                completions=completions,
                seed=0,
                origin="sampled",
                engine_id="e",
                weights_version=0,
            )


class FakeLearner:
    """The k-th candidate of a prompt has k + 1 tokens of log-prob -(row's number) each."""

    def candidate_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[Any]) -> list[list[tuple[float, ...]]]:
        return [
            [(-float(prompt.id.split("/")[1]),) * (k + 1) for k in range(len(own))]
            for prompt, own in zip(prompts, answers, strict=True)
        ]


def evaluator(inputs: RunInputs, fleet: FakeFleet, config: Config | None = None) -> Evaluator:
    parts: Any = {"fleet": fleet, "learner": FakeLearner()}
    return Evaluator(
        config=config or inputs.config,
        closed_set=inputs.model.closed_set,
        encode=lambda examples: [inputs.model.encoder.encode(example) for example in examples],
        **parts,
    )


def test_every_row_gets_its_own_answers_and_scores(inputs: RunInputs) -> None:
    fleet = FakeFleet()
    verdicts = {one.name: (one, rows) for one, rows in evaluator(inputs, fleet).give_verdicts(inputs.sets)}
    assert list(verdicts) == ["held-out", "base", "new"]
    one, rows = verdicts["new"]
    assert [row.id for row in rows] == [one.source[index].id for index in range(6)]
    for index, row in enumerate(rows):
        assert row.label == one.source[index].label
        assert row.greedy.text == f"{row.id}+0"
        assert [sample.text for sample in row.samples] == [f"{row.id}+{k}" for k in range(3)]
        assert row.closed is not None
        assert row.closed.candidates == ("five", "six", "seven", "eight", "nine")
        assert row.closed.lengths == (1, 2, 3, 4, 5)
        number = float(row.id.split("/")[1])
        assert row.closed.logprobs == tuple(-number * (k + 1) for k in range(5))


def test_rows_of_two_sets_are_answered_once(inputs: RunInputs) -> None:
    fleet = FakeFleet()
    verdicts = {one.name: rows for one, rows in evaluator(inputs, fleet).give_verdicts(inputs.sets)}
    assert verdicts["held-out"] is verdicts["base"]
    assert len(fleet.asked) == 2 * 2 * 6  # two sources; greedy and sampled
    greedy = [request for request in fleet.asked if request.sampling.temperature == 0]
    assert {request.sampling.n for request in greedy} == {1} and len(greedy) == 12
    sampled = [request for request in fleet.asked if request.sampling.temperature]
    assert {request.sampling.n for request in sampled} == {3}
    assert len({request.seed for request in sampled if request.prompt_id.startswith("base")}) == 6


def test_lines_of_base_new_and_h(inputs: RunInputs) -> None:
    lines = evaluator(inputs, FakeFleet()).measure_sets(inputs.sets)
    assert [line["set"] for line in lines] == ["held-out", "base", "new", "H"]
    assert [line["rows"] for line in lines] == [6, 6, 6, 12]
    assert lines[3]["accuracy"] == 0.0
    assert lines[0] | {"set": "", "intervals": {}} == lines[1] | {"set": "", "intervals": {}}
    assert lines[0]["pass_at"] == {"1": 0.0, "2": 0.0}


def test_no_h_without_both(inputs: RunInputs) -> None:
    rows = {one.name: rows for one, rows in evaluator(inputs, FakeFleet()).give_verdicts(inputs.sets[:2])}
    assert [line["set"] for line in measure_all(rows, inputs.config)] == ["held-out", "base"]


def test_a_refused_row_ends_the_evaluation(inputs: RunInputs) -> None:
    refused = inputs.sets[0].source[3].id
    with pytest.raises(DataError, match=f"row {refused} cannot be evaluated") as caught:
        evaluator(inputs, FakeFleet(refuses=refused)).measure_sets(inputs.sets)
    assert caught.value.got == "too hard"
