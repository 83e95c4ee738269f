"""Adapters: the reference is the base bit for bit, the gradient the naive one, what is published the policy itself."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.schema import LoraConfig
from learner.model.head import ScoringSpec
from learner.model.last_layer import shorten
from learner.model.logprobs import packed_logprobs
from learner.model.lora import add_adapters, export_adapter, switch_off_adapters
from learner.model.pack import build_pack
from learner.objective.losses import LOSSES
from learner.objective.records import CLS_RL, Coefficients
from learner.trainer.loss_terms import count_step
from learner.trainer.weights import WeightSource
from tests.helpers import oracle, tiny

SPEC = ScoringSpec(banned=tiny.BANNED)
CONFIG = LoraConfig(rank=4, alpha=8)
EVERYTHING = LoraConfig(rank=4, alpha=8, targets="language_and_vision")


def base() -> Any:
    """The tiny model as a run loads it: with its last layer shortened."""
    model = tiny.model()
    shorten(model)
    return model


def adapted(config: LoraConfig = CONFIG, *, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Any]]:
    """The tiny model with adapters that have learned something."""
    model = base().to(dtype)
    layers = add_adapters(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model, layers


def logprobs(model: Any) -> Tensor:
    pack = build_pack(tiny.ragged(), model, banned=tiny.BANNED)
    return packed_logprobs(model, pack, SPEC).logp


def published(model: Any, layers: dict[str, Any]) -> dict[str, Tensor]:
    return dict(WeightSource(model, gathered=lambda _: nullcontext(), bucket_bytes=5_000, adapters=layers))


def test_a_fresh_adapter_and_one_switched_off_are_the_base_bit_for_bit() -> None:
    plain = logprobs(base())
    fresh = base()
    add_adapters(fresh, CONFIG)
    assert torch.equal(logprobs(fresh), plain)
    model, layers = adapted()
    assert not torch.equal(logprobs(model), plain)
    with switch_off_adapters(layers):
        assert torch.equal(logprobs(model), plain)
    assert not torch.equal(logprobs(model), plain)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradient_and_kl_are_the_naive_ones(checkpointed: bool) -> None:
    """Law 2 with adapters: the reference pass in between, through the same modules, leaves no trace."""
    model, layers = adapted()
    twin = copy.deepcopy(model)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    groups = tiny.ragged()
    pack = build_pack(groups, model, banned=tiny.BANNED)
    scores = packed_logprobs(model, pack, SPEC)
    with torch.no_grad(), switch_off_adapters(layers):
        reference = packed_logprobs(model, pack, SPEC, kept=scores.kept)
    record = pack.inputs(
        scores.logp, reference.logp, step=count_step(groups, CLS_RL), coefficients=Coefficients(beta=0.1)
    )
    torch.autograd.backward(LOSSES["grpo"](record).loss)
    torch.autograd.backward(oracle.loss(twin, base(), groups, SPEC, beta=0.1))
    assert oracle.relative_error(oracle.gradient(model), oracle.gradient(twin)) < 1e-5
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {name for name, _ in model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_adapters_are_on_the_language_model_and_on_vision_if_asked(family: tiny.Family) -> None:
    language = add_adapters(tiny.model(family), CONFIG)
    everything = add_adapters(tiny.model(family), EVERYTHING)
    assert len(language) == 2 * 7  # layers, of q k v o gate up down
    assert all(name.startswith("model.language_model.layers.") for name in language)
    assert language.keys() < everything.keys()
    assert all(name.startswith("model.visual.") for name in everything.keys() - language.keys())
    assert "model.visual.merger.mlp.0.weight" in everything


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_what_is_published_is_the_policy(dtype: torch.dtype, tolerance: float) -> None:
    """Under the names of the model without adapters, and no live weight is touched."""
    model, layers = adapted(EVERYTHING, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    weights = published(model, layers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    plain = base().to(dtype)
    assert set(weights) == set(plain.state_dict())
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    plain.load_state_dict(weights)
    torch.testing.assert_close(logprobs(plain), logprobs(model), rtol=0, atol=tolerance)


def test_an_exported_adapter_loads_on_its_base(tmp_path: Path) -> None:
    import peft

    model, _ = adapted(EVERYTHING)
    tensors = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    export_adapter(tensors, model, EVERYTHING, "org/base", tmp_path)
    loaded: Any = peft.PeftModel.from_pretrained(base(), str(tmp_path))
    assert torch.equal(logprobs(loaded.base_model.model), logprobs(model))
    assert peft.PeftConfig.from_pretrained(str(tmp_path)).base_model_name_or_path == "org/base"
