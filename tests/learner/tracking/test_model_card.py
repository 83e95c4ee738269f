"""The model card says what was trained, and nothing about this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.config.objective import PRESETS
from common.config.schema import Config
from learner.objective.ratios import SURROGATES
from learner.tracking.model_card import make_model_card, write_model_card
from learner.tracking.records import Summary

SUMMARY = Summary(
    stopped_early=None,
    warnings=(),
    outcome="finished",
    steps=250,
    accuracy_before=0.125,
    accuracy_after=0.95,
    accuracy_step=250,
    accuracy_best=0.95,
    wall_seconds=180.0,
    startup_seconds=20.0,
    completions_per_second=700.0,
    max_logprob_gap=3e-6,
    weights_version=250,
    checkpoint_failures=0,
    log_failures=0,
    config_hash="0123456789ab",
    git_sha="f" * 40,
)


@pytest.mark.parametrize(
    ("model", "data", "front"),
    [
        (
            "Qwen/Qwen2-VL-2B-Instruct",
            "someone/cars",
            {"base_model": "Qwen/Qwen2-VL-2B-Instruct", "datasets": ["someone/cars"]},
        ),
        ("embedded:digits", "/secret/place/cars", {}),
    ],
)
def test_model_card(tmp_path: Path, model: str, data: str, front: dict[str, object]) -> None:
    config = Config(model={"path": model}, data={"path": data})  # type: ignore[arg-type]
    text = write_model_card(tmp_path, config=config, summary=SUMMARY).read_text()
    _, head, body = text.split("---\n", 2)
    parsed = yaml.safe_load(head)
    assert {key: parsed[key] for key in ("base_model", "datasets") if key in parsed} == front
    assert all(part in body for part in (model, "cars", "0.125", "0.950", "0123456789ab", "f" * 40))
    assert "secret" not in text


def test_the_card_of_an_adapter_names_its_library(tmp_path: Path) -> None:
    config = Config.model_validate({"lora": {"rank": 4}, "checkpoint": {"export": "adapter"}})
    _, head, body = write_model_card(tmp_path, config=config, summary=SUMMARY).read_text().split("---\n", 2)
    assert "by adapters of rank 4 (LoRA)" in body
    assert yaml.safe_load(head)["library_name"] == "peft"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "exact"}, "the exact gradient of the scaled reward over listed candidates"),
        ({"method": "exact", "exact": {"advantage": "raw"}}, "the exact gradient of the expected reward over listed"),
        ({"data": {"image_size": 56}}, "Images go to the processor resized to 56x56;"),
        ({"data": {"image_size": None}}, "Images go to the processor at their own size;"),
    ],
)
def test_the_card_says_what_was_followed_and_what_the_processor_got(settings: dict[str, object], says: str) -> None:
    """A processor scales pictures by its own limits afterwards, so none "keep their size"."""
    assert says in make_model_card(Config.model_validate(settings), SUMMARY)


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_the_card_names_the_objective(preset: str | None) -> None:
    settings = {"preset": preset, **PRESETS[preset]} if preset else {}
    text = make_model_card(Config.model_validate({"objective": settings}), SUMMARY)
    wanted = "GRPO" if preset in (None, "grpo") else f"GRPO (objective {preset})"
    assert f"fine-tuned with {wanted} on" in text


@pytest.mark.parametrize("loss", SURROGATES)
def test_the_card_names_the_loss(loss: str) -> None:
    for settings in ({}, {"method": "exact", "exact": {"sampled_share": 0.5}}):
        text = make_model_card(Config.model_validate({"objective": {"loss": loss}, **settings}), SUMMARY)
        assert ("GRPO" if loss == "grpo" else f"GRPO (loss {loss})") in text


def test_groups_of_several_sizes_have_an_average() -> None:
    for most, words in ((None, "16 prompts with 4 sampled completions each"), (9, "4 sampled completions on average")):
        config = Config.model_validate({"signal": {"max_group_size": most}})
        assert words in make_model_card(config=config, summary=SUMMARY)
