"""Evaluation of the current weights: answers from engines, candidate scores from the learner, verdicts from both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config.schema import Config
from common.errors import DataError
from common.labels.candidates import candidates
from common.labels.closed_set import ClosedSet
from common.types import Example, FailedGroup, GenerationRequest, Group, Prompt
from learner.evaluation.measures import measure_all
from learner.evaluation.sets import EvaluationSet
from learner.evaluation.verdicts import ClosedScores, Verdict, give_verdict
from learner.trainer.group import LearnerGroup
from rollout.fleet.fleet import RolloutFleet
from rollout.requests import greedy_requests, training_requests

_CHUNK = 512  # prompts at a time: bounds the host memory that a large set takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Evaluates the weights that engines and learner hold at the time of a call."""

    config: Config
    fleet: RolloutFleet
    learner: LearnerGroup | None  # scores candidates; None where no set wants that
    closed_set: ClosedSet
    encode: Callable[[Sequence[Example]], list[Prompt]]

    def measure_sets(self, sets: Sequence[EvaluationSet]) -> list[dict[str, Any]]:
        """Return one row of measures a set, then one of H where there are a base and a new set."""
        return measure_all({one.name: rows for one, rows in self.give_verdicts(sets)}, self.config)

    def give_verdicts(self, sets: Sequence[EvaluationSet]) -> Iterator[tuple[EvaluationSet, list[Verdict]]]:
        """Yield each set with the verdicts on its rows, in their order; rows that two sets share are answered once.

        Raises:
            DataError: an engine refused a row. An accuracy leaves no row out.
        """
        known: dict[int, list[Verdict]] = {}
        for one in sets:
            if id(one.source) not in known:
                known[id(one.source)] = list(self._judge_set(one))
            yield one, known[id(one.source)]

    def _judge_set(self, one: EvaluationSet) -> Iterator[Verdict]:
        """Answer and judge one chunk of rows after the other."""
        config, source = self.config, one.source
        count = min(len(source), config.evaluation.limit or len(source))
        for start in range(0, count, _CHUNK):
            prompts = self.encode([source[index] for index in range(start, min(start + _CHUNK, count))])
            greedy = self._generate(greedy_requests(prompts, config.rollout))
            samples = self._generate(self._make_sample_requests(prompts)) if config.evaluation.samples else {}
            closed = self._score_candidates(prompts, greedy) if one.closed_set else {}
            for prompt in prompts:
                yield give_verdict(
                    prompt.example,
                    greedy[prompt.id].completions[0].text,
                    data=config.data,
                    labels=source.labels,
                    samples=[said.text for said in samples[prompt.id].completions] if samples else (),
                    closed=closed.get(prompt.id),
                )

    def _make_sample_requests(self, prompts: Sequence[Prompt]) -> list[GenerationRequest]:
        """Make requests as in training, but for `evaluation.samples` answers and with the same seeds at every step."""
        rollout = self.config.rollout.model_copy(update={"group_size": self.config.evaluation.samples})
        return training_requests(prompts, rollout, seed=self.config.seed, step=-1)

    def _generate(self, requests: Sequence[GenerationRequest]) -> dict[str, Group]:
        groups: dict[str, Group] = {}
        for outcome in self.fleet.generate(requests):
            if isinstance(outcome, FailedGroup):
                raise DataError(
                    f"held-out row {outcome.prompt_id} cannot be evaluated",
                    got=outcome.reason,
                    remedy="mend or remove the row: an accuracy with rows left out would not be comparable",
                )
            groups[outcome.prompt_id] = outcome
        return groups

    def _score_candidates(self, prompts: Sequence[Prompt], greedy: Mapping[str, Group]) -> dict[str, ClosedScores]:
        """Score the candidates of each row, by prompt id; in a mode that thinks first, after the thought of the greedy
        answer."""
        assert self.learner is not None, "there is a learner where a set is to be scored"
        offered = [tuple(candidates(prompt.example.problem) or ()) for prompt in prompts]
        begun = [
            self.closed_set.after_thought(prompt, greedy[prompt.id].completions[0].token_ids) for prompt in prompts
        ]
        answers = [
            self.closed_set.answers(labels, opening=opening)
            for labels, (_, opening) in zip(offered, begun, strict=True)
        ]
        scores = self.learner.candidate_logprobs([prompt for prompt, _ in begun], answers)
        return {
            prompt.id: ClosedScores(
                candidates=labels,
                logprobs=tuple(sum(tokens) for tokens in rows),
                lengths=tuple(len(tokens) for tokens in rows),
            )
            for prompt, labels, rows in zip(prompts, offered, scores, strict=True)
        }
