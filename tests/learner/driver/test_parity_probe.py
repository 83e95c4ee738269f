"""The probe: silent while engine and learner agree, and at the first disagreement a stop that says where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.schema import Config, LearnerConfig
from common.errors import EngineError
from common.models.families import FAMILIES, OTHER, Family
from common.types import Completion, FailedGroup, GenerationRequest, Group, GroupGap, Prompt, ScoredGroup
from learner.driver.parity_probe import ParityProbe, check_gaps
from tests.helpers import jobs, tiny
from tests.helpers.models import Architecture, build_random_model


class Sides:
    """A fleet that samples nonsense, and a learner that is off by `gap`."""

    def __init__(self, gap: float = 0.0, *, refuses: bool = False) -> None:
        self.gap, self.refuses = gap, refuses
        self.engines = ["engine-0"]  # the last one answers
        self.asked: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Group | FailedGroup]:
        self.asked += requests
        if self.refuses:
            return [FailedGroup(prompt_id=one.prompt_id, reason="too long") for one in requests]
        answer = Completion(token_ids=(5, 6), logprobs=(-1.0, -2.0), text="", finish_reason="stop")
        return [
            Group(
                prompt_id=one.prompt_id,
                completions=(answer,) * one.sampling.n,
                seed=one.seed,
                origin="sampled",
                engine_id=self.engines[-1],
                weights_version=0,
            )
            for one in reversed(requests)  # groups come as they finish
        ]

    def logprobs(self, scored: Sequence[ScoredGroup]) -> list[list[tuple[float, ...]]]:
        return [[(one.logprobs[0], one.logprobs[1] + self.gap) for one in group.group.completions] for group in scored]


def prompts() -> list[Prompt]:
    return [tiny.group(seed, text=6, pictures=[], lengths=[1, 1]).prompt for seed in range(2)]


def probe(
    sides: Any, *, dtype: str = "float32", family: Family = FAMILIES["qwen2_vl"], max_lag: int = 0, **learner: Any
) -> ParityProbe:
    config = Config.model_validate({"model": {"dtype": dtype}, "learner": learner, "rollout": {"max_lag": max_lag}})
    return ParityProbe(sides, sides, config, family=family, on_event=lambda kind, **fields: None)


def test_two_pushes_are_probed_and_no_more() -> None:
    sides = Sides()
    look = probe(sides)
    for version in range(4):
        look(version, prompts)
    assert [one.prompt_id for one in sides.asked] == ["test/0", "test/1"] * 2
    assert max(one.sampling.max_tokens for one in sides.asked) <= 8


def list_probes(sides: Sides, look: ParityProbe, pushes: int) -> list[int]:
    """Return the pushes, from the next one on, after which it was sampled."""
    found = []
    for push in range(pushes):
        before = len(sides.asked)
        look(push, prompts)
        if len(sides.asked) > before:
            found.append(push)
    return found


def test_with_a_lag_every_50th_push_is_probed() -> None:
    sides = Sides()
    assert list_probes(sides, probe(sides, max_lag=1), 151) == [0, 1, 49, 99, 149]
    assert list_probes(sides, probe(sides), 151) == [0, 1]


def test_an_engine_that_joins_is_probed() -> None:
    sides = Sides()
    look = probe(sides)
    assert list_probes(sides, look, 4) == [0, 1]
    sides.engines = ["engine-0", "engine-1"]  # which answers
    assert list_probes(sides, look, 4) == [0]
    sides.engines = ["engine-2", "engine-1"]  # the new one is at work on something else
    assert list_probes(sides, look, 5) == [0, 1, 2]
    sides.engines, sides.gap = ["engine-1", "engine-3"], 0.1
    with pytest.raises(EngineError, match="version 9"):
        look(9, prompts)


@pytest.mark.parametrize(("gap", "dtype"), [(2e-3, "float32"), (-0.8, "bfloat16"), (float("nan"), "float32")])
def test_a_gap_stops_the_run(gap: float, dtype: str) -> None:
    with pytest.raises(EngineError, match="version 7") as caught:
        probe(Sides(gap), dtype=dtype)(7, prompts)
    assert f"{abs(gap):.3g}" in str(caught.value.got)
    assert ("rounding" in caught.value.remedy) == (dtype == "bfloat16")


def test_the_limit_can_be_raised() -> None:
    probe(Sides(0.6), probe_gap=1.0)(7, prompts)


def test_the_likely_cause_goes_by_push_and_family() -> None:
    with pytest.raises(EngineError, match="image tokens see each other"):
        probe(Sides(0.1), family=FAMILIES["gemma3"])(0, prompts)
    with pytest.raises(EngineError, match="nobody has tried"):
        probe(Sides(0.1), family=OTHER)(0, prompts)
    sides = Sides()
    look = probe(sides)
    look(0, prompts)
    sides.gap = 0.1
    with pytest.raises(EngineError, match="kept weights or caches"):
        look(1, prompts)


def test_a_refused_probe_says_why() -> None:
    with pytest.raises(EngineError, match="too long"):
        probe(Sides(refuses=True))(0, prompts)


def step_of(*gaps: Sequence[float], version: int = 7) -> tuple[list[ScoredGroup], dict[str, GroupGap]]:
    """A step of one group an engine, sampled with one version of the weights, and the gap of each of its tokens."""
    scored = [tiny.group(number, text=4, pictures=[], lengths=[1, 1]) for number in range(len(gaps))]
    scored = [
        replace(one, group=replace(one.group, engine_id=f"engine-{number}", weights_version=version))
        for number, one in enumerate(scored)
    ]
    figures = [GroupGap(total=sum(own), largest=max(own), tokens=len(own)) for own in gaps]
    return scored, dict(zip((one.prompt.id for one in scored), figures, strict=True))


def check(gaps: Sequence[Sequence[float]], dtype: str = "bfloat16", **learner: Any) -> None:
    check_gaps(Config.model_validate({"model": {"dtype": dtype}, "learner": learner}), 7, *step_of(*gaps))


def test_every_step_is_held_to_law_1_by_default() -> None:
    check([[9e-4] * 4], "float32")
    with pytest.raises(EngineError, match=r"0\.002, learner\.max_logprob_gap = 0\.001.* engine-1, in float32"):
        check([[1e-6] * 50, [1e-6] * 49 + [2e-3]], "float32")
    check([[0.01] * 99 + [4.0]])  # one token far out says nothing in bfloat16
    with pytest.raises(EngineError, match=r"6, learner\.max_logprob_gap = 5"):
        check([[0.0] * 99 + [6.0]])


def test_one_stale_engine_of_eight_is_found_by_its_own_mean() -> None:
    healthy, stale = [0.03] * 64, [0.3] * 63 + [1.5]
    check([healthy] * 8)
    with pytest.raises(EngineError) as caught:
        check([healthy] * 7 + [stale])
    assert "in the mean of 64 tokens, learner.mean_logprob_gap = 0.2; the worst is 1.5" in str(caught.value.got)
    assert f"in the group of {step_of(*[healthy] * 8)[0][7].prompt.id}, sampled by engine-7" in str(caught.value.got)
    assert "resume=auto" in caught.value.remedy
    check([healthy] * 7 + [stale], mean_logprob_gap=0.4)
    check([stale], max_logprob_gap=float("inf"))
    with pytest.raises(EngineError, match="mean_logprob_gap"):
        check([stale], max_logprob_gap=float("inf"), mean_logprob_gap=0.2)


def test_groups_of_older_weights_are_another_policy_and_no_fault() -> None:
    config = Config.model_validate({"model": {"dtype": "float32"}})
    check_gaps(config, 7, *step_of([2.0], version=6))
    fresh, stale = step_of([1e-6] * 9, [2e-3]), step_of([1e-6], [1e-6], [2.0], version=6)
    scored, gaps = [*fresh[0], stale[0][2]], {**stale[1], **fresh[1]}
    with pytest.raises(EngineError, match=r"0\.002.* engine-1"):
        check_gaps(config, 7, scored, gaps)


def test_a_low_temperature_divides_logits_and_so_the_limits_that_nobody_set() -> None:
    cold = Config.model_validate({"model": {"dtype": "float32"}, "rollout": {"temperature": 0.1}})
    step = step_of([1e-6] * 99 + [5e-3])
    check_gaps(cold, 7, *step)
    with pytest.raises(EngineError, match=r"max_logprob_gap = 0\.01"):
        check_gaps(cold, 7, *step_of([1e-6] * 99 + [2e-2]))
    with pytest.raises(EngineError, match=r"max_logprob_gap = 0\.001"):
        check_gaps(cold.model_copy(update={"learner": LearnerConfig(max_logprob_gap=1e-3)}), 7, *step)


def test_a_gap_that_is_no_number_is_found_and_given_answers_have_none() -> None:
    nothing = float("nan")
    with pytest.raises(EngineError, match="gap of nan"):
        check([[0.0, nothing]])
    scored, _ = step_of([0.0])
    check_gaps(Config(), 7, scored, {})


@pytest.mark.engine
@pytest.mark.parametrize("family", ["internvl", "llava"])
def test_a_whole_run_of_another_family_is_probed_and_learns(tmp_path: Path, family: Architecture) -> None:
    """Through the entry point under ZeRO-3 with two engines: five steps, both probes, an export; LLaVA, which is in no
    table, the plain way."""
    folder = build_random_model(tmp_path / family, seed=1, architecture=family)
    recipe = yaml.safe_load((jobs.ROOT / "deploy/recipes/digits.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"model": {"path": str(folder), "dtype": "float32"}}))
    words = ["--config", str(tmp_path / "recipe.yaml"), "steps=5", "learner.zero_stage=3", "rollout.engines=2"]
    words += ["evaluation.limit=8", "data.max_prompt_tokens=400", "rollout.cpus_per_engine=0.25", "checkpoint.every=0"]
    words.append("rollout.max_completion_tokens=6")  # its tokenizer has no label as one token
    words.append("reward.functions={tests.helpers.hostile_rewards:length: 1.0}")  # random answers differ in that
    run = jobs.complete(tmp_path / "run", *words)
    probes = [row for row in jobs.rows(run, "events.jsonl") if row["kind"] == "probe"]
    assert [row["version"] for row in probes] in ([0, 1], [0, 1, 2]), "a third where an engine was in neither"
    assert all(0 < row["gap"] < 2e-5 for row in probes)
    metrics = jobs.rows(run, "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(5))
    assert max(row["logprob_gap_max"] for row in metrics) < 2e-5
    assert all(row["grad_norm"] > 0 for row in metrics)
    assert (run / "export" / "model.safetensors").exists()
    assert ("reads every prompt 4 times" in jobs.console(run)) == (family == "llava")
