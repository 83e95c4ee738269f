"""A trace counts what autograd keeps of the real forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.config.schema import Config
from learner.memory.trace import build_weightless_model, make_up_group, trace_learning_peak
from learner.model.attention import install
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.pack import build_pack
from tests.helpers import tiny

DEEP = 6  # layers: what a backward needs beside what the forward kept is one layer's


def model_config(**text: int) -> Any:
    config = tiny.model().config
    config.text_config.num_hidden_layers = config.vision_config.depth = DEEP
    config.text_config.layer_types = ["full_attention"] * DEEP
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return config


def settings(**model: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"dtype": "float32", **model},
            "learner": {"gpus_per_rank": 0, "beta": 0},
            "rollout": {"gpus_per_engine": 0},
            "cluster": {"device": "cpu"},
        }
    )


def kept(wanted: Any, groups: list[Any]) -> int:
    """Bytes that autograd saves of a real forward of the same shapes."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_config(
        wanted, trust_remote_code=False, attn_implementation="sdpa"
    ).train()
    install(model, "auto")
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        built = build_pack(groups, model, banned=())
        packed_logprobs(model, built, ScoringSpec(banned=tiny.BANNED))
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.slow
@pytest.mark.parametrize("text", [{}, {"intermediate_size": 256}, {"num_key_value_heads": 4}])
def test_a_trace_holds_what_autograd_saves(text: dict[str, int]) -> None:
    wanted, groups = model_config(**text), [*tiny.ragged(), *tiny.ragged()]
    config = settings()
    assert trace_learning_peak(build_weightless_model(wanted, config), groups, config) == pytest.approx(
        kept(wanted, groups), rel=0.15
    )


@pytest.mark.slow
def test_checkpointing_keeps_less_and_a_frozen_tower_too() -> None:
    groups = tiny.ragged()
    peaks = {}
    for name in ("none", "gradient_checkpointing", "freeze_vision"):
        config = settings(**({} if name == "none" else {name: True}))
        peaks[name] = trace_learning_peak(build_weightless_model(model_config(), config), groups, config)
    assert peaks["gradient_checkpointing"] < peaks["none"] / 2
    assert peaks["freeze_vision"] < peaks["none"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["sdpa", "flash", "flex"])
def test_a_run_on_a_gpu_is_traced_whatever_way_it_attends(way: str, checkpointing: bool) -> None:
    """They differ in a dense mask, or in gathered keys and values: little beside all else."""
    model = {"dtype": "bfloat16", "gradient_checkpointing": checkpointing}
    peaks = {}
    for name in ("auto", way):
        config = Config.model_validate({"model": model, "learner": {"attention": name}})
        peaks[name] = trace_learning_peak(build_weightless_model(model_config(), config), tiny.ragged(), config)
    assert peaks[way] == pytest.approx(peaks["auto"], rel=0.15)


@pytest.mark.slow
def test_it_takes_no_memory_and_leaves_no_gradient() -> None:
    config = settings()
    model = build_weightless_model(model_config(), config)
    trace_learning_peak(model, tiny.ragged(), config)
    assert all(parameter.is_meta and parameter.grad is None for parameter in model.parameters())


def test_a_made_up_group_has_the_shape_asked_for() -> None:
    prompt = tiny.ragged()[0].prompt
    group = make_up_group(prompt, tokens=40, completions=3, length=5)
    assert len(group.prompt.token_ids) == 40
    assert [len(completion.token_ids) for completion in group.group.completions] == [5, 5, 5]
    assert build_pack([group], tiny.model(), banned=()).ids.shape == (1, 40 + 3 * 4)
