"""The model runner of a GPU's engine: its own Python on this CPU, fed and pushed to as in a run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
import torch

from common.errors import BrokenEngineError
from common.types import Group, ImageFeatures, Sampling
from learner.model.vision_features import compute_features
from rollout.requests import request
from rollout.spec import EngineSpec, engine_spec
from tests.helpers.gpu_runner import CHUNK, ENVIRONMENT, GpuRunnerTurns
from tests.helpers.models import Architecture, build_random_model
from tests.helpers.policy import Policy
from tests.helpers.turns import Turn, make_config, measure_amid_a_batch

pytestmark = pytest.mark.engine
TIGHT = 2e-5
SHORT = Sampling(n=2, temperature=1.0, top_p=1.0, top_k=0, max_tokens=4)  # a kernel takes seconds, interpreted
CUT = dataclasses.replace(SHORT, temperature=0.8, top_k=20, top_p=0.9)
SIZES: list[tuple[int, int] | None] = [(56, 56), (90, 200), None]
TILED: dict[str, list[tuple[int, int] | None]] = {"aria": [(56, 56), None], "mistral3": [(56, 56), (90, 40), None]}


def tokens(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group.completions] for group in groups]


def make_spec(folder: Path, policy: Policy) -> EngineSpec:
    return engine_spec(make_config(folder), model_path=str(folder), banned=policy.banned)


@pytest.fixture(scope="module")
def turns(ray_session: None, random_qwen2vl: Path) -> Iterator[Any]:
    spec = engine_spec(make_config(random_qwen2vl), model_path=str(random_qwen2vl), banned=())
    cold = {"env_vars": spec.environment() | ENVIRONMENT, "py_executable": sys.executable}
    actor: Any = ray.remote(GpuRunnerTurns).options(num_cpus=0, runtime_env=cold)
    handle = actor.remote()
    yield handle
    ray.kill(handle)


@pytest.fixture(scope="module")
def shared(turns: Any, random_qwen2vl: Path) -> tuple[Policy, Turn]:
    """The one Qwen2-VL that most tests share."""
    policy = Policy(random_qwen2vl, max_prompt_tokens=400)
    return policy, Turn(turns, make_spec(random_qwen2vl, policy))


def test_a_logits_processor_of_the_other_model_runner_is_refused(turns: Any, random_qwen2vl: Path) -> None:
    """Banned by such a class, tokens would end every run on a GPU at its start."""
    spec = engine_spec(make_config(random_qwen2vl), model_path=str(random_qwen2vl), banned=(1,))
    assert "is not a subclass of" in ray.get(turns.start_with_processor.remote(spec), timeout=300)


def test_the_engine_is_as_on_a_gpu(shared: tuple[Policy, Turn]) -> None:
    policy, engine = shared
    assert engine.ask("describe") == {
        "model runner": "vllm.v1.worker.gpu.model_runner",
        "what keeps a GPU from it": [],
        "parts of prompts": True,
        "schedules ahead": True,
    }
    assert len(policy.prompt(0, size=SIZES[1]).token_ids) > CHUNK


@pytest.mark.parametrize(("sampling", "versions"), [(SHORT, 3), (CUT, 2)], ids=["plain", "cut"])
def test_law_1_at_start_and_after_every_push(shared: tuple[Policy, Turn], sampling: Sampling, versions: int) -> None:
    """On prompts and pictures seen before, which is fault 8, and by the sampling settings asked for: fault 10."""
    policy, engine = shared
    policy.reset()
    prompts = [policy.prompt(number, size=size) for number, size in enumerate(SIZES)]
    requests = [request(prompt, sampling, seed=number) for number, prompt in enumerate(prompts)]
    sampled = []
    for version in range(versions):
        policy.push(engine, version)
        groups = engine.generate(requests, version)
        assert policy.gap(prompts, groups, sampling) < TIGHT
        sampled.append(tokens(groups))
        policy.shake(version)
    assert all(old != new for old, new in pairwise(sampled)), "the pushes changed nothing: this test could not fail"


def test_law_5_tokens_depend_on_the_seed_alone_also_in_an_engine_built_anew(
    shared: tuple[Policy, Turn], turns: Any, random_qwen2vl: Path
) -> None:
    """Law 1 too, for the engine built anew holds the checkpoint's weights until the current ones are pushed."""
    policy, engine = shared
    policy.shake(5)
    policy.push(engine, 5)
    prompts = [policy.prompt(number) for number in range(4)]
    requests = [request(prompt, SHORT, seed=100 * number) for number, prompt in enumerate(prompts)]
    together = tokens(engine.generate(requests, 5))
    assert tokens(engine.generate(requests[::-1], 5)) == together
    assert tokens(engine.generate(requests[2:3], 5)) == together[2:3]
    other = [dataclasses.replace(one, seed=one.seed + 50) for one in requests]
    assert tokens(engine.generate(other, 5)) != together

    engine.ask("start", make_spec(random_qwen2vl, policy))
    policy.push(engine, 5)
    again = engine.generate(requests, 5)
    assert tokens(again) == together
    assert policy.gap(prompts, again, SHORT) < TIGHT


def test_law_1_holds_when_a_frozen_tower_is_not_sent_again(shared: tuple[Policy, Turn]) -> None:
    """Its image features stay in the engine's cache, or come in place of pixels."""
    policy, engine = shared
    policy.reset()
    prompts = [policy.prompt(number, size=size) for number, size in enumerate(SIZES[:2])]
    images = [prompt.images for prompt in prompts if isinstance(prompt.images, ImageFeatures)]
    featured = [
        dataclasses.replace(prompt, images=made)
        for prompt, made in zip(prompts, compute_features(policy.model, images), strict=True)
    ]
    for version in range(3):
        policy.push(engine, version, vision_unchanged=version > 0)
        for form in (prompts, featured):
            requests = [request(prompt, SHORT, seed=number) for number, prompt in enumerate(form)]
            assert policy.gap(prompts, engine.generate(requests, version), SHORT) < TIGHT
        policy.shake(version, lambda name: "visual" not in name)


def test_weights_are_pushed_after_a_generation_that_nobody_waited_for(shared: tuple[Policy, Turn]) -> None:
    """A step is still under way then, with the old weights."""
    policy, engine = shared
    policy.push(engine, 0)
    prompts = [policy.prompt(number) for number in range(3)]
    lengths = (2, 12, 12)
    requests = [
        request(prompt, dataclasses.replace(SHORT, max_tokens=length), seed=1)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    assert engine.ask("stop_early", requests, 0) > 0, "nothing was under way: this test could not fail"
    policy.shake(9)
    policy.push(engine, 1)
    assert policy.gap(prompts, engine.generate(requests, 1), SHORT) < TIGHT


def test_law_1_token_by_token_where_weights_come_amid_a_batch(shared: tuple[Policy, Turn]) -> None:
    """A step is under way then, with the old weights: its tokens are of theirs, or are sampled anew."""
    policy, engine = shared
    policy.reset()
    prompts = [policy.prompt(number, size=size) for number, size in enumerate(SIZES)]
    sampling = dataclasses.replace(CUT, max_tokens=9)
    assert measure_amid_a_batch(policy, engine, prompts, sampling) < TIGHT


def test_a_group_computes_the_positions_of_its_prompt_once(shared: tuple[Policy, Turn]) -> None:
    policy, engine = shared
    policy.push(engine, 0)
    assert engine.ask("count_positions", request(policy.prompt(0), SHORT, seed=0), 0) == (SHORT.n, 1)


def test_keys_and_values_that_vllm_does_not_forget_are_an_error(shared: tuple[Policy, Turn]) -> None:
    """Of a request amid its answer, when weights come: vLLM only says so, and would go on with old ones (fault 8)."""
    policy, engine = shared
    manifest = policy.push(engine, 0)
    amid = request(policy.prompt(0, size=None), dataclasses.replace(SHORT, max_tokens=12), seed=0)
    assert "cannot forget the keys and values" in engine.ask("load_amid", amid, manifest)


def test_fault_9_banned_tokens_are_never_sampled(shared: tuple[Policy, Turn]) -> None:
    policy, engine = shared
    policy.reset()
    embedding = policy.model.get_input_embeddings().weight
    with torch.no_grad():
        embedding *= 0.01
        embedding[policy.model.config.image_token_id] *= 5000
    policy.push(engine, 3)
    prompts = [policy.prompt(number) for number in range(2)]
    found = engine.generate([request(prompt, SHORT, seed=number) for number, prompt in enumerate(prompts)], 3)
    assert not {token for group in tokens(found) for ids in group for token in ids} & set(policy.banned)
    assert policy.gap(prompts, found, SHORT) < TIGHT


def test_an_engine_that_gets_no_weights_for_a_layer_is_an_error(turns: Any, random_qwen2vl: Path) -> None:
    """vLLM's reload says so in its log alone, and keeps the old ones."""
    policy = Policy(random_qwen2vl, max_prompt_tokens=400)
    engine = Turn(turns, make_spec(random_qwen2vl, policy))
    manifest = policy.sender().publish(0)
    assert manifest is not None
    buckets = [
        dataclasses.replace(bucket, entries=tuple(one for one in bucket.entries if "layers.0.mlp.down" not in one.name))
        for bucket in manifest.buckets
    ]
    with pytest.raises(BrokenEngineError, match=r"nothing for 1 of them: \S*layers.0.mlp.down_proj.weight"):
        engine.publish(dataclasses.replace(manifest, buckets=tuple(buckets)))


def test_law_5_an_answer_that_was_put_off_has_the_same_tokens(turns: Any, random_qwen2vl: Path) -> None:
    """Where the cache is too small for all: what was computed of it is thrown away, and computed again."""
    policy = Policy(random_qwen2vl, max_prompt_tokens=400)
    spec = dataclasses.replace(make_spec(random_qwen2vl, policy), max_model_len=96)
    engine = Turn(turns, spec)
    policy.push(engine, 0)
    prompts = [policy.prompt(number) for number in range(2)]
    long = dataclasses.replace(SHORT, n=4, max_tokens=16)
    requests = [request(prompt, long, seed=number) for number, prompt in enumerate(prompts)]
    at_once = tokens(engine.generate(requests, 0))

    engine.ask("start_with_few_blocks", spec, spec.max_model_len // 16 + 2)
    policy.push(engine, 0)
    found, put_off = engine.ask("generate_and_count", requests, 0)
    assert put_off > 0, "none was put off: this test could not fail"
    found.sort(key=lambda group: group.prompt_id)
    assert tokens(found) == at_once
    assert policy.gap(prompts, found, long) < TIGHT


@pytest.mark.parametrize("family", get_args(Architecture))
def test_law_1_in_every_family(family: Architecture, turns: Any, tmp_path: Path) -> None:
    folder = build_random_model(tmp_path / "model", seed=1, architecture=family)
    policy = Policy(folder, max_prompt_tokens=400)
    engine = Turn(turns, make_spec(folder, policy))
    prompts = [policy.prompt(number, size=size) for number, size in enumerate(TILED.get(family, SIZES))]
    requests = [request(prompt, SHORT, seed=number) for number, prompt in enumerate(prompts)]
    for version in range(2):
        policy.push(engine, version)
        assert policy.gap(prompts, engine.generate(requests, version), SHORT) < TIGHT
        policy.shake(version)
