"""Every family in the real engine: law 1 at start and after two pushes, five steps in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
import torch

from common.types import Group, ScoredGroup
from learner.model.attention import install
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.pack import build_pack
from learner.objective.losses import LOSSES
from learner.objective.records import CLS_RL, Coefficients
from learner.trainer.loss_terms import count_step
from rollout.requests import request
from rollout.spec import engine_spec
from tests.helpers.models import Architecture, build_random_model
from tests.helpers.policy import SAMPLED, Policy
from tests.helpers.turns import Turn, Turns, make_config, measure_amid_a_batch

pytestmark = pytest.mark.engine
TIGHT = 2e-5
MIXED: list[tuple[int, int] | None] = [(56, 56), (112, 60), (90, 200), None]
SIZES: dict[str, list[tuple[int, int] | None]] = {"aria": [(56, 56), None], "mistral3": [(56, 56), (90, 40), None]}


@pytest.fixture(scope="module")
def turns(ray_session: None, random_qwen2vl: Path) -> Iterator[Any]:
    spec = engine_spec(make_config(random_qwen2vl), model_path=str(random_qwen2vl), banned=())
    actor: Any = ray.remote(Turns).options(num_cpus=0, runtime_env={"env_vars": spec.environment()})
    handle = actor.remote()
    yield handle
    ray.kill(handle)


@pytest.mark.parametrize("family", get_args(Architecture))
def test_law_1_at_start_and_after_two_pushes_with_five_steps_between(
    family: Architecture, turns: Any, tmp_path: Path
) -> None:
    folder = build_random_model(tmp_path / "model", seed=1, architecture=family)
    policy = Policy(folder, max_prompt_tokens=400)
    engine = Turn(turns, engine_spec(make_config(folder), model_path=str(folder), banned=policy.banned))
    packed = engine.ask("find_packed")
    prompts = [policy.prompt(number, size=size) for number, size in enumerate(SIZES.get(family, MIXED))]
    requests = [request(prompt, SAMPLED, seed=number) for number, prompt in enumerate(prompts)]
    by_id = {prompt.id: prompt for prompt in prompts}
    gaps = []
    for version in range(3):
        policy.push(engine, version)
        groups = engine.generate(requests, version)
        gaps.append(policy.gap(prompts, groups, SAMPLED))
        if version == 0:
            losses = learn(policy, [scored(by_id[group.prompt_id], group) for group in groups])
        else:
            policy.shake(version)
    gaps.append(measure_amid_a_batch(policy, engine, prompts, dataclasses.replace(SAMPLED, max_tokens=9)))
    print(f"{family}: gaps {gaps}, losses {losses}, {engine.notes}")
    slow = [note for note in engine.notes if note]  # vLLM packs experts in a way of its own
    assert bool(slow) == (family == "aria"), slow
    assert set(packed.values()) == {True, False}, packed  # both kinds were pushed to
    assert max(gaps) < TIGHT
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0]


def test_new_weights_come_amid_answers_that_began_with_what_others_had_read(turns: Any, random_qwen2vl: Path) -> None:
    """Their picture lies in blocks of the cache that were there, and is read for the first time now."""
    policy = Policy(random_qwen2vl, max_prompt_tokens=400)
    spec = engine_spec(make_config(random_qwen2vl), model_path=str(random_qwen2vl), banned=policy.banned)
    engine = Turn(turns, dataclasses.replace(spec, max_sequences=2))
    prompts = [policy.prompt(8, question="one or two? " * 24)]
    sampling = dataclasses.replace(SAMPLED, n=6, max_tokens=9)
    assert measure_amid_a_batch(policy, engine, prompts, sampling, steps=(3, 13)) < TIGHT


def scored(prompt: Any, group: Group) -> ScoredGroup:
    rewards = tuple(float(sum(one.token_ids) % 7) for one in group.completions)
    return ScoredGroup(prompt=prompt, group=group, rewards_by_name={"test": rewards}, rewards=rewards)


def learn(policy: Policy, groups: Sequence[ScoredGroup]) -> list[float]:
    """Five steps on the same groups, towards what earned most: the log-probs alone, as after many steps."""
    install(policy.model, "auto")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(5):
        pack = build_pack(groups, policy.model, banned=policy.banned)
        scores = packed_logprobs(policy.model, pack, ScoringSpec(banned=policy.banned))
        record = pack.inputs(scores.logp, None, step=count_step(groups, CLS_RL), coefficients=Coefficients(beta=0.0))
        loss = LOSSES["grpo"](record).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(-(scores.logp.detach() * pack.advantage[pack.row]).mean()))
    return losses
