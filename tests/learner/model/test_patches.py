"""Upstream without our patches: each test fails when its patch is no longer needed. See `learner.model.patches`."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface
from transformers.activations import QuickGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from learner.model.lora import add_adapters, find_adapters
from learner.model.patches import PATCHES, Patch
from tests.helpers import tiny
from tests.helpers.jobs import ROOT
from tests.learner.model.test_last_layer import seen_by
from tests.learner.model.test_lora import CONFIG


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.test)
def test_the_inventory_names_code_and_tests_that_exist(patch: Patch) -> None:
    module, _, name = patch.by.partition(":")
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
    assert name in {getattr(node, "name", None) for node in ast.parse(source).body}
    assert patch.test in globals()
    package, seen = patch.upstream.split()
    numbers = [tuple(map(int, text.partition("+")[0].split("."))) for text in (seen, version(package))]
    assert numbers[0] <= numbers[1], "a version that is not here yet"


def saved_by(run: Callable[[], Any]) -> dict[int, int]:
    """Bytes that autograd keeps, by storage."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()  # noqa: SLF001
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = run()  # alive until all is counted
    assert kept is not None
    return sizes


def test_a_tower_attends_one_picture_at_a_time() -> None:
    calls: list[int] = []

    def attend(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("counted", attend)
    model = tiny.model()
    model.set_attn_implementation({"vision_config": "counted"})
    values = [scored.prompt.features for scored in tiny.ragged() if scored.prompt.images]
    pixels, grids = (
        torch.cat([torch.tensor(value[name]) for value in values]) for name in ("pixel_values", "image_grid_thw")
    )
    model.model.visual(pixels, grid_thw=grids)
    assert len(calls) == len(grids) * model.config.vision_config.depth


def test_a_patch_convolution_is_slower_than_a_product() -> None:
    """Of the 784 patches of a picture of 384 x 384 pixels."""
    convolution = nn.Conv3d(3, 256, (2, 14, 14), stride=(2, 14, 14), bias=False).requires_grad_(False)
    patches, weight = torch.randn(784, 3, 2, 14, 14), convolution.weight.flatten(1)

    def best(run: Callable[[], Tensor]) -> float:
        seconds = []
        for _ in range(7):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    product = best(lambda: nn.functional.linear(patches.flatten(1), weight))
    assert best(lambda: convolution(patches)) > 1.3 * product


def test_quick_gelu_keeps_more_than_its_input() -> None:
    given = torch.randn(100, requires_grad=True)
    assert sum(saved_by(lambda: QuickGELUActivation()(given)).values()) > given.nbytes


def test_the_last_layer_computes_tokens_that_nobody_reads() -> None:
    model = tiny.model()
    last = seen_by(model.get_decoder().layers[-1].mlp)
    model(input_ids=torch.randint(20, 60, (1, 9)), logits_to_keep=1)
    assert last == [9]


def test_a_head_gives_all_logits() -> None:
    read = torch.tensor([2, 3, 7])
    logits = tiny.model()(input_ids=torch.randint(20, 60, (1, 9)), logits_to_keep=read).logits
    assert logits.shape == (1, len(read), tiny.VOCABULARY)


@pytest.mark.slow
def test_a_configuration_imports_scikit_learn() -> None:
    script = "import sys, transformers.models.qwen2_vl.configuration_qwen2_vl; print('sklearn' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert done.stdout.split() == ["True"]


def test_peft_freezes_adapters_that_are_off() -> None:
    model = tiny.model()
    add_adapters(model, CONFIG)
    layer = next(iter(find_adapters(model).values()))
    assert layer.lora_A["default"].weight.requires_grad
    layer.enable_adapters(False)
    assert not layer.lora_A["default"].weight.requires_grad


def test_attention_without_memory_keeps_a_matrix() -> None:
    size = 64
    query, key, value = (torch.empty(1, 2, size, 8, device="meta", requires_grad=True) for _ in range(3))
    mask = torch.empty(1, 1, size, size, device="meta")
    kept = saved_by(lambda: nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    assert max(kept.values()) >= 2 * size * size * query.itemsize


def test_flex_attention_refuses_tensors_without_memory() -> None:
    query, key, value = (torch.empty(1, 2, 16, 8, device="meta") for _ in range(3))
    with pytest.raises(ValueError, match="meta"):
        flex_attention(query, key, value)


@pytest.fixture(scope="module")
def deepspeed() -> dict[str, Any]:
    """What an unpatched DeepSpeed does, in a process of its own."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.unpatched_deepspeed"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | ranks,
    )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


@pytest.mark.engine
def test_deepspeed_builds_an_extension_at_start(deepspeed: dict[str, Any]) -> None:
    assert deepspeed["builds an extension"]


@pytest.mark.engine
def test_deepspeed_raises_on_a_full_disk(deepspeed: dict[str, Any]) -> None:
    assert deepspeed["raises on a full disk"]


@pytest.mark.engine
def test_deepspeed_raises_where_no_script_can_be_copied(deepspeed: dict[str, Any]) -> None:
    assert deepspeed["raises where no script can be copied"]


@pytest.mark.engine
def test_deepspeed_keeps_a_frozen_tied_weight(deepspeed: dict[str, Any]) -> None:
    assert deepspeed["keeps a frozen tied weight"] == ["head.weight"]


@pytest.mark.engine
def test_deepspeed_averages_over_one_rank(deepspeed: dict[str, Any]) -> None:
    assert deepspeed["averages over one rank"]


@pytest.mark.engine
def test_deepspeed_runs_code_in_a_checkpoint(deepspeed: dict[str, Any]) -> None:
    assert deepspeed["runs code in a checkpoint"]
