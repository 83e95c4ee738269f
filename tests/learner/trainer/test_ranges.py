"""A step that is learned range by range, on real ranks: its gradient is that of the whole step (laws 2 and 3), and its
bits depend on the ranges alone, never on when they come (law 5)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.schema import Config
from common.types import ScoredGroup, StepResult
from learner.model.head import ScoringSpec
from learner.objective.records import Coefficients
from learner.trainer.group import LearnerGroup
from learner.trainer.sent_step import SentStep
from tests.helpers import oracle, tiny
from tests.learner.trainer.test_dead_groups import EVERY_GROUP, batch, configure
from tests.learner.trainer.test_group import Weights, assert_equal, opened, unpack

pytestmark = pytest.mark.engine

Ranges = Sequence[Sequence[ScoredGroup]]
SPEC = ScoringSpec(banned=tiny.BANNED)
BETA = 0.5
# A first step of AdamW that shows the gradient: each weight moves by g / (|g| + 1).
SHOW = {"lr": 1.0, "eps": 1.0, "grad_clip": 1e6, "weight_decay": 0.0, "schedule": "constant"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


def in_ranges(
    model: Path, ranges: int, *, stage: int, dtype: str = "float32", ranks: int = 2, **changes: dict[str, Any]
) -> Config:
    """Of twelve prompts a step, with four completions each: more than ever come."""
    rollout = {"prompts_per_step": 12, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    learner = {"ranges": ranges, **changes.pop("learner", {})}
    return configure(model, ranks=ranks, stage=stage, dtype=dtype, rollout=rollout, learner=learner, **changes)


def learn(group: LearnerGroup, ranges: Ranges, *, at: int, slowly: bool = False) -> StepResult:
    group.begin_step(at=at)
    for number, scored in enumerate(ranges, 1):
        group.learn_range(scored, last=number == len(ranges))
        if slowly:
            time.sleep(0.3)  # engines sample
            group.logprobs(batch(7)[:3])
    return group.finish_step()


def split(groups: Sequence[ScoredGroup], *dropped: int) -> list[list[ScoredGroup]]:
    """Nine groups in three ranges, without some."""
    return [[groups[at] for at in part if at not in dropped] for part in ((0, 1, 2), (3, 4, 5), (6, 7, 8))]


def assert_close(found: Weights, wanted: Weights, *, moved: Weights) -> None:
    """To 1e-5 of the largest move of each tensor, or two roundings of a weight of 1."""
    most = max(float((wanted[name] - old).abs().max()) for name, old in moved.items())
    for name, tensor in wanted.items():
        move = float((tensor - moved[name]).abs().max())
        assert float((found[name] - tensor).abs().max()) <= 1e-5 * max(move, 0.01 * most) + 2.5e-7, name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_gradient_is_that_of_all_groups_that_came(ray_session: None, model_path: Path, stage: int) -> None:
    """Against plain torch, one row at a time; two groups were dropped of the twelve planned, one of each range's."""
    came = split(batch(0), 4, 8)
    config = in_ranges(model_path, 3, stage=stage, learner={**SHOW, "beta": BETA})
    with opened(config) as group:
        found = learn(group, came, at=0)
        weights = unpack(group.publish(1))

    policy, reference, start = tiny.model(), tiny.model(), tiny.model().state_dict()
    loss = oracle.loss(policy, reference, [one for part in came for one in part], SPEC, beta=BETA)
    torch.autograd.backward(loss)
    norm = float(torch.nn.utils.get_total_norm([one.grad for one in policy.parameters() if one.grad is not None]))
    assert found.grad_norm == pytest.approx(norm, rel=1e-5)
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-6)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1.0, betas=config.learner.betas, eps=1.0, weight_decay=0.0)
    optimizer.step()
    wanted = policy.state_dict()
    assert_close(weights, {name: wanted[name] for name in weights}, moved={name: start[name] for name in weights})


TOKENS = {"loss": "cispo", "aggregation": "token", "mask_truncated": True}
OBJECTIVES: list[dict[str, Any]] = [
    {},
    {**TOKENS, "entropy_bonus": 0.01},
    {"aggregation": "constant", "advantage": "none"},
    {"loss": "gspo", "aggregation": "sequence_sum", "updates": 2},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_figures_and_gradient_are_those_of_a_step_learned_whole(
    ray_session: None, model_path: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    """Whatever the loss is a mean over, where groups are dropped, dead, or a whole range is either."""
    nine, cut = batch(0), []
    for number, one in enumerate(nine):
        said = [replace(one, finish_reason="length") if number == 3 else one for one in one.group.completions]
        cut.append(replace(one, group=replace(one.group, completions=tuple(said))))
    cases = [split(nine), split(cut, 2), split(nine, 6, 7, 8), split(nine, 3, 4, 5), split(nine, 0, 1, 2, 7)]
    cases.append(split(batch(1, {6: 0.7, 7: 1.2, 8: 0.0})))
    found: dict[int, list[tuple[StepResult, Weights]]] = {1: [], 3: []}
    for ranges, steps in found.items():
        own = {**SHOW, "beta": 0.0 if "entropy_bonus" in objective else BETA}
        if "updates" in objective:  # the second begins where the first has ended
            own["lr"] = 0.01
        config = in_ranges(model_path, ranges, stage=1, learner=own, objective=objective)
        with opened(config) as group:
            reports = group.save(tmp_path / f"{ranges}")
            for case in cases:
                group.load(tmp_path / f"{ranges}", reports)
                came = case if ranges == 3 else [[one for part in case for one in part]]
                steps.append((learn(group, came, at=0), unpack(group.publish(1))))
    start = tiny.model().state_dict()
    for (parts, weights), (whole, wanted) in zip(found[3], found[1], strict=True):
        assert_close(weights, wanted, moved={name: start[name] for name in wanted})
        for name in ("loss", "kl", "entropy", "grad_norm"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-4, abs=1e-6), name
        assert parts.left_out in (whole.left_out, whole.left_out - 1), "a dead range at the end reads one group"
        assert parts.updates == whole.updates == objective.get("updates", 1)


KINDS = [(stage, dtype) for stage in (0, 1, 2, 3) for dtype in ("float32", "bfloat16") if stage or dtype == "float32"]


@pytest.mark.parametrize(("stage", "dtype"), KINDS)
def test_when_a_range_comes_changes_no_bit(ray_session: None, model_path: Path, stage: int, dtype: str) -> None:
    """Also over a step whose groups are all dead, and one without a number, which leaves no trace."""
    config = in_ranges(model_path, 3, stage=stage, dtype=dtype)
    broken = batch(5)
    broken[1] = replace(broken[1], rewards=(float("nan"),) * len(broken[1].rewards))
    steps = [split(batch(0), 4), split(batch(1, EVERY_GROUP)), split(batch(2), 6, 7, 8)]
    runs = []
    for slowly in (False, True):
        with opened(config) as group:
            results = [learn(group, steps[0], at=0, slowly=slowly)]
            if slowly:
                assert learn(group, split(broken), at=1, slowly=True).updates == 0
            results += [learn(group, parts, at=at, slowly=slowly) for at, parts in enumerate(steps[1:], 1)]
            runs.append((results, unpack(group.publish(3))))
    (once, weights), (late, other) = runs
    assert_equal(weights, other)
    assert once == late
    assert [one.left_out for one in once] == [2, 8, 2]
    assert once[1].grad_norm == 0 and all(one.updates == 1 for one in once)


def test_dropping_dead_groups_keeps_every_bit_in_ranges_too(ray_session: None, model_path: Path) -> None:
    """The last range, or the whole step, may be dead."""
    found = []
    for how in ("keep", "auto"):
        config = in_ranges(model_path, 3, stage=2, objective={"dead_groups": how})
        with opened(config) as group:
            for at, dead in enumerate(({1: 1.2, 4: 0.7}, {6: 0.7, 7: 1.2, 8: 0.0}, EVERY_GROUP, {})):
                learn(group, split(batch(at, dead)), at=at)
            found.append(unpack(group.publish(4)))
    assert_equal(*found)


def test_every_rank_gets_as_many_packs_and_one_to_end_the_step(tmp_path: Path) -> None:
    """Whatever was dropped or is dead, no real group is read twice."""
    config, groups = in_ranges(tmp_path, 3, stage=2), batch(0)
    cases = [split(groups), split(groups, 6, 7, 8), split(groups, 0, 1, 2), split(batch(0, EVERY_GROUP))]
    for case in [*cases, [[], [], list(groups[:1])], [list(groups[:1]), [], []]]:
        sent = SentStep(config=config, coefficients=Coefficients.of(config))
        parts = [sent.add(own, last=number == 3) for number, own in enumerate(case, 1)]
        assert all(len(batches) == 1 and len({len(own) for own in batches[0]}) == 1 for batches in parts)
        assert parts[-1][0][0], "the last pack says that none follows"
        packs = [pack for batches in parts for own in batches[0] for pack in own]
        read = [one.prompt.id for pack in packs if pack.real for one in pack.groups]
        assert len(read) == len(set(read)) and set(read) == set(sent.read)
        assert all(pack.term is not None and pack.term.counts == sent.planned for pack in packs)
