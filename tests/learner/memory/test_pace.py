"""The pace of a step on GPUs: against a worked example, and what follows from it for engines and lag."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from common.config.schema import Config
from learner.memory.pace import ROOFLINES, Pace, compute_pace, count_engines, find_roofline
from learner.memory.plan import Counts, Plan, Share
from learner.memory.show import show_pace

COUNTS = Counts(total=8 * 10**9, vision=10**9, trained=8 * 10**9, largest=10**9, itemsize=2)
TEXT = SimpleNamespace(num_hidden_layers=28, num_key_value_heads=4, head_dim=128)
MODEL = SimpleNamespace(get_text_config=lambda: TEXT)


def settings(*, ranks: int = 1, engines: int = 2, **rollout: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"dtype": "bfloat16"},
            "rollout": {"engines": engines, "prompts_per_step": 32, "group_size": 8, "max_completion_tokens": 500}
            | rollout,
            "learner": {"ranks": ranks, "zero_stage": 3 if ranks > 1 else 1},
            "cluster": {"device": "cuda"},
        }
    )


def pace(config: Config, engines: int) -> Pace:
    return compute_pace(COUNTS, MODEL, config, tokens=300, pictures=196, engines=engines, gpu=ROOFLINES["H100"])


def test_a_worked_example() -> None:
    """16 groups of 8 on each of two engines, by hand.

    A token of all 128 sequences: 14e9 bytes of weights and 128 * 550 * 57,344 of keys and values are 18.04e9 bytes, at
    2.345e12 a second. A prompt: 2 * 7e9 * 300 + 2 * 1e9 * 784 FLOPs are 5.768e12. A group in the learner: those and
    8 * 499 tokens of 14e9 FLOPs are 6.166e13, forward, backward and by the reference four times that.
    """
    found = pace(settings(), engines=2)
    assert found.decode == pytest.approx(500 * 18.037e9 / 2.345e12, rel=1e-3)
    assert found.prefill == pytest.approx(16 * 5.768e12 / 494.5e12, rel=1e-3)
    assert found.learn == pytest.approx(32 * 4 * 6.166e13 / 395.6e12, rel=1e-3)
    assert found.publish == pytest.approx(0.8)
    assert found.step(max_lag=0) == pytest.approx(found.decode + found.prefill + found.learn + 0.8)
    assert found.step(max_lag=1) == pytest.approx(found.learn + 0.8)


def test_sequences_beyond_what_an_engine_decodes_at_once_take_another_turn() -> None:
    whole, halved = (pace(settings(max_sequences=most), engines=2).decode for most in (128, 64))
    assert 1.7 < halved / whole < 2  # weights are read twice, keys and values as often as before


def test_how_many_engines_keep_up() -> None:
    """Four ranks learn for 4.99 s. One engine samples for 5.08 s, two for 4.03. Eight ranks are faster than any."""
    slow, quick = settings(ranks=4), settings(ranks=8)
    assert count_engines(lambda engines: pace(slow, engines), 32) == 2
    assert count_engines(lambda engines: pace(quick, engines), 32) is None


def test_a_gpu_is_known_by_a_part_of_its_name() -> None:
    assert find_roofline("NVIDIA H100 80GB HBM3") == ("H100", ROOFLINES["H100"])
    assert find_roofline("NVIDIA GeForce RTX 4090") == ("4090", ROOFLINES["4090"])
    assert find_roofline("NVIDIA L40S") == ("L40S", ROOFLINES["L40S"])
    assert find_roofline("Tesla T4") is None


def show(config: Config, gpu: str | None) -> str:
    made = Plan(
        config=config,
        counts=COUNTS,
        tokens=300,
        pictures=196,
        pack="",
        rank=Share(parts=()),
        engine=Share(parts=()),
        host=Share(parts=()),
    )
    return "\n".join(show_pace(made, MODEL, gpu))


def test_what_is_printed() -> None:
    printed = show(settings(ranks=4), None)
    assert "roofline of an H100, not measured" in printed
    assert "rollout.engines=2 keeps up" in printed
    assert "prompts_per_step=64" in printed  # 2 engines * 256 sequences / 8
    assert "no number of engines" in show(settings(ranks=8), "NVIDIA H100 PCIe")
    assert "unknown for Tesla T4" in show(settings(), "Tesla T4")


def test_a_cpu_has_no_pace() -> None:
    config = settings()
    on_cpu = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": "cpu"})})
    assert show(on_cpu, "this machine") == ""
