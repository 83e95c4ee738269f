"""Groups that change no weight are not read: on real ranks, every weight keeps every bit (law 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.schema import Config
from common.types import ScoredGroup, StepResult
from learner.model.head import ScoringSpec
from learner.objective.advantages import compare_groups
from learner.objective.records import CLS_RL
from learner.trainer.loss_terms import has_gradient, leave_out_dead, split_by_loss
from tests.helpers import oracle, tiny
from tests.learner.trainer.test_group import LR, Weights, assert_equal, opened, settings, unpack

DEAD = {1: 1.2, 4: 0.7, 6: 0.0}  # of nine groups: their one reward, which is not always its own float32 mean


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


def configure(model: Path, *, ranks: int, stage: int, dtype: str = "float32", **changes: dict[str, Any]) -> Config:
    raw = settings(model, ranks=ranks, stage=stage, dtype=dtype).model_dump()
    raw["learner"] |= {"beta": 0.0, "weight_decay": 0.1, "tokens_per_pack": 90}  # two or three groups a pack
    raw["objective"] |= {"correction": "none"}  # the log-probs of the engine are made up
    for section, own in changes.items():
        raw[section] |= own
    return Config.model_validate(raw)


def with_rewards(one: ScoredGroup, rewards: Sequence[float]) -> ScoredGroup:
    return replace(one, rewards_by_name={"test": tuple(rewards)}, rewards=tuple(rewards))


def with_id(one: ScoredGroup, name: str) -> ScoredGroup:
    example = replace(one.prompt.example, id=name)
    return replace(one, prompt=replace(one.prompt, example=example), group=replace(one.group, prompt_id=name))


def batch(step: int, dead: dict[int, float] | None = None) -> list[ScoredGroup]:
    """Nine groups, of which three are dead."""
    more = [with_id(one, f"again/{number}") for number, one in enumerate(tiny.ragged()[:4])]
    dead, draw, groups = DEAD if dead is None else dead, torch.Generator().manual_seed(step), []
    for number, one in enumerate([*tiny.ragged(), *more]):
        size = len(one.rewards)
        rewards = [dead[number]] * size if number in dead else torch.rand(size, generator=draw).tolist()
        groups.append(with_rewards(one, rewards))
    return groups


def learn(config: Config, steps: Sequence[Sequence[ScoredGroup]]) -> tuple[list[StepResult], Weights]:
    with opened(config) as group:
        results = [group.step(scored, at=at) for at, scored in enumerate(steps)]
        return results, unpack(group.publish(len(steps)))


EVERY_GROUP = dict.fromkeys(range(9), 1.2)
RANKS = [(2, 0, "float32"), (2, 1, "bfloat16"), (2, 2, "float32"), (2, 3, "bfloat16")]


@pytest.mark.engine
@pytest.mark.parametrize(("ranks", "stage", "dtype"), RANKS)
def test_dropping_dead_groups_keeps_every_bit(
    ray_session: None, model_path: Path, ranks: int, stage: int, dtype: str
) -> None:
    """With a step in which all are dead: moments and weight decay go on, as they do where nothing is dropped."""
    steps = [batch(0), batch(1, EVERY_GROUP), batch(2)]
    found = {}
    for how in ("keep", "auto"):
        config = configure(model_path, ranks=ranks, stage=stage, dtype=dtype, objective={"dead_groups": how})
        found[how] = learn(config, steps)
    (kept, whole), (dropped, weights) = found["keep"], found["auto"]
    assert_equal(weights, whole)
    assert [one.left_out for one in kept] == [0, 0, 0]
    assert [one.left_out for one in dropped] == [3, 8, 3]
    assert [one.grad_norm for one in dropped] == [one.grad_norm for one in kept]
    assert [one.loss for one in dropped] == pytest.approx([one.loss for one in kept], abs=1e-6)
    assert kept[1].grad_norm == 0 and dropped[1].updates == 1
    start = tiny.model().state_dict()
    assert any((weights[name].float() - tensor).abs().max() > 0 for name, tensor in start.items())
    for one in dropped:  # each figure is of what was read, the gaps too
        assert one.tokens == sum(gap.tokens for gap in one.gaps.values()) > 0
        assert one.entropy > 0 and one.logprob_gap_mean > 0
    assert len(dropped[0].gaps) == 6 and len(dropped[1].gaps) == 1 and len(kept[0].gaps) == 9


@pytest.mark.engine
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"updates": 2, "minibatches": 2}, "rollout": {"prompts_per_step": 8}},
        {"objective": {"loss": "gspo", "aggregation": "token", "mask_truncated": True}},
    ],
)
def test_also_over_several_updates_and_masked_completions(
    ray_session: None, model_path: Path, changes: dict[str, dict[str, Any]]
) -> None:
    """The first minibatch is all dead; two groups were cut whole."""
    steps = [batch(0, dict.fromkeys(range(5), 0.7)), batch(1)]
    for number in (0, 2):
        one = steps[1][number]
        cut = tuple(replace(said, finish_reason="length") for said in one.group.completions)
        steps[1][number] = replace(one, group=replace(one.group, completions=cut))
    found = []
    for how in ("keep", "auto"):
        own: dict[str, Any] = changes | {"objective": changes["objective"] | {"dead_groups": how}}
        config = configure(model_path, ranks=2, stage=2, **own)
        results, weights = learn(config, steps)
        found.append(weights)
    assert_equal(*found)
    assert results[0].left_out > 3
    assert results[1].left_out == (5 if changes["objective"].get("mask_truncated") else 3)


@pytest.mark.engine
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_the_kl_of_dead_groups_is_kept_or_dropped_as_asked(
    ray_session: None, model_path: Path, ranks: int, stage: int
) -> None:
    """Against a twin of plain torch. Dropped, they are part of every mean, with 0; the figure of the KL is of the rest,
    and a step of dead groups alone has no gradient."""
    spec, beta = ScoringSpec(banned=tiny.BANNED), 0.5
    for how in ("auto", "drop"):
        raw = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        own = {"beta": beta, "weight_decay": 0.0}
        config = configure(
            model_path, ranks=ranks, stage=stage, rollout=raw, learner=own, objective={"dead_groups": how}
        )
        results, _ = learn(config, [batch(0), batch(1), batch(2, EVERY_GROUP)])
        policy, reference = tiny.model(), tiny.model()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0)
        for at in (0, 1):
            groups = batch(at)
            read = groups if how == "auto" else [one for number, one in enumerate(groups) if number not in DEAD]
            share = sum(len(one.rewards) for one in read) / sum(len(one.rewards) for one in groups)
            kl = mean_kl(policy, reference, read, spec)
            optimizer.param_groups[0]["lr"] = results[at].lr
            optimizer.zero_grad()
            torch.autograd.backward(share * oracle.loss(policy, reference, read, spec, beta=beta))
            norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0))
            optimizer.step()
            assert results[at].grad_norm == pytest.approx(norm, rel=1e-3)
            assert results[at].kl == pytest.approx(kl, rel=1e-2, abs=1e-6)
        assert [one.left_out for one in results] == ([3, 3, 8] if how == "drop" else [0, 0, 0])
        assert (results[2].grad_norm == 0) == (results[2].loss == 0) == (how == "drop")
        assert results[2].kl > 0


def mean_kl(policy: Any, reference: Any, groups: Sequence[ScoredGroup], spec: ScoringSpec) -> float:
    """k3, mean over the tokens of each completion and then over completions."""
    rows = []
    with torch.no_grad():
        for one in groups:
            for index in range(len(one.rewards)):
                logp, ref, _ = oracle.row_logprobs(policy, reference, one, index, spec)
                rows.append(((ref - logp).exp() - (ref - logp) - 1).mean())
    return float(torch.stack(rows).mean())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [1, 4, 6]),
        ({"learner": {"beta": 0.04}}, []),
        ({"objective": {"entropy_bonus": 0.1}}, []),
        ({"objective": {"entropy_bonus": 0.1, "entropy_floor": 0.5}}, []),
        ({"learner": {"beta": 0.04}, "objective": {"kl_in": "reward"}}, [1, 4, 6]),
        ({"learner": {"beta": 0.04}, "objective": {"dead_groups": "drop"}}, [1, 4, 6]),
        ({"objective": {"advantage": "whitened"}}, []),
        ({"objective": {"advantage": "whitened_baseline"}}, []),
        ({"objective": {"overlong_buffer": 3}, "rollout": {"max_completion_tokens": 7}}, [1, 6]),
        ({"objective": {"dead_groups": "keep"}}, []),
    ],
)
def test_what_is_dead_is_what_nothing_teaches(changes: dict[str, Any], wanted: list[int], tmp_path: Path) -> None:
    """By advantages as they are in the end, and by what else is in the loss; the means stay those of all groups."""
    config, groups = configure(tmp_path, ranks=1, stage=0, **changes), batch(0)
    ((whole, own),) = split_by_loss(groups, config.loss, config.objective)
    parts = leave_out_dead(whole, own, compare_groups(groups, config), config)
    read = [one.prompt.id for _, part in parts for one in part]
    assert [number for number, one in enumerate(groups) if one.prompt.id not in read] == wanted
    assert all(term.counts == whole.counts and term.share == whole.share and term.taught for term, _ in parts)


def test_given_groups_are_never_dead(tmp_path: Path) -> None:
    """Equal rewards teach sft, and the gradient of the exact losses is not in advantages."""
    config = configure(tmp_path, ranks=1, stage=0)
    groups = [replace(one, group=replace(one.group, origin="given")) for one in batch(0, EVERY_GROUP)]
    ((whole, own),) = split_by_loss(groups, "sft", config.objective)
    assert leave_out_dead(whole, own, {}, config) == [(whole, groups)]


def test_a_reward_that_is_no_number_is_not_dead() -> None:
    """It is read, and the step is skipped. A zero of either sign is a zero."""
    one = with_rewards(batch(0)[0], [float("nan")] * 4)
    assert has_gradient(one, [float("nan")] * 4, CLS_RL, others=False)
    assert not has_gradient(one, [0.0, -0.0, 0.0, 0.0], CLS_RL, others=False)
