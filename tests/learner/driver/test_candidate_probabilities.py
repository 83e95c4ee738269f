"""The probabilities of candidates after each thought are what a plain forward over prompt, thought and answer says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config.schema import ModelConfig
from common.data.sources import load
from common.labels.candidates import candidates
from common.labels.closed_set import Answer, ClosedSet
from common.models.processor import load_processor
from common.models.prompts import PromptEncoder
from common.types import Completion, Group, Prompt
from learner.driver.candidate_probabilities import compute_candidate_probabilities
from learner.embedded.model import DIGITS
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.pack import build_pack
from learner.trainer.offline_groups import build_unscored_group
from rollout.rewards import REWARDS
from tests.helpers import oracle

THINK = DIGITS.model_copy(update={"mode": "think"})
SAID = (
    "<think>it looks like seven</think>\n<answer>seven</answer>",
    "<think>it looks like seven</think><answer>nine",  # the same thought
    "<think>it looks like one</think>\n<answer>one</answer>",
    "<think>no end",
    "seven",
    "",
)


class PlainLearner:
    """`LearnerGroup.candidate_logprobs` without actors."""

    def __init__(self, model: Any) -> None:
        self.model, self.asked = model, 0

    def candidate_logprobs(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]
    ) -> list[list[tuple[float, ...]]]:
        self.asked += len(prompts)
        return [self._scored(prompt, own) for prompt, own in zip(prompts, answers, strict=True)]

    def _scored(self, prompt: Prompt, own: Sequence[Answer]) -> list[tuple[float, ...]]:
        pack = build_pack([build_unscored_group(prompt, own)], self.model, banned=())
        with torch.no_grad():
            flat = iter(packed_logprobs(self.model, pack, ScoringSpec()).logp.tolist())
        return [tuple(next(flat) for _ in answer) for answer in own]


@pytest.fixture(scope="module")
def model(digits_model: Path) -> Any:
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration.from_pretrained(digits_model, trust_remote_code=False)


@pytest.mark.slow
def test_marginal_reward_is_the_brute_force_probability_of_the_label_given_the_thought(
    digits_model: Path, model: Any
) -> None:
    processor = load_processor(ModelConfig(path=str(digits_model)))
    tokenizer, source = processor.tokenizer, load(THINK, split="test")
    encoder = PromptEncoder(processor, THINK)
    prompts = [encoder.encode(source[row]) for row in range(3)]
    end = tokenizer.eos_token_id

    def group(prompt: Prompt, said: Sequence[str]) -> Group:
        ids = [(*tokenizer(text)["input_ids"], end) for text in said]
        completions = tuple(
            Completion(token_ids=own, logprobs=(0.0,) * len(own), text=text, finish_reason="stop")
            for own, text in zip(ids, said, strict=True)
        )
        return Group(
            prompt_id=prompt.id,
            completions=completions,
            seed=0,
            origin="sampled",
            engine_id="engine-0",
            weights_version=0,
        )

    learner = PlainLearner(model)
    closed_set = ClosedSet(processor, mode="think", ends=[end], banned=())
    groups = [group(prompts[2], SAID[::-1]), group(prompts[0], SAID)]  # one was dropped; they come in any order
    found = compute_candidate_probabilities(prompts, groups, closed_set, learner)  # type: ignore[arg-type]
    assert found.keys() == {prompts[0].id, prompts[2].id}
    assert learner.asked == 2 * 5, "a thought that came twice is asked once"

    thoughts = [text.partition("</think>")[0] for text in SAID]
    for prompt, order in ((prompts[0], thoughts), (prompts[2], thoughts[::-1])):
        label = prompt.example.label
        wanted = [brute_force(model, tokenizer, prompt, thought)[label] for thought in order]
        rewards = REWARDS["marginal"]([""] * len(order), label=label, candidate_probabilities=found[prompt.id])
        np.testing.assert_allclose(rewards, wanted, rtol=1e-4)
        assert len(set(wanted)) == 5
        assert all(sum(one.values()) == pytest.approx(1) for one in found[prompt.id])


def brute_force(model: Any, tokenizer: Any, prompt: Prompt, thought: str) -> dict[str, float]:
    """Every candidate, one at a time, all ids in one row: share of its probability in that of all."""
    listed = candidates(prompt.example.problem) or []
    begun = tuple(tokenizer(thought)["input_ids"]) if thought else ()
    totals = []
    for label in listed:
        ids = (*tokenizer(f"</think>\n<answer>{label}</answer>")["input_ids"], tokenizer.eos_token_id)
        scored = build_unscored_group(prompt, [(*begun, *ids)])
        with torch.no_grad():
            logp, _, _ = oracle.row_logprobs(model, model, scored, 0, ScoringSpec())
        totals.append(float(logp[len(begun) :].sum()))
    shares = np.exp(totals) / np.exp(totals).sum()
    return dict(zip(listed, shares.tolist(), strict=True))
