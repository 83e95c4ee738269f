"""The model card that goes with exported weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.config.schema import Config
from learner.tracking.records import Summary

_ON_GIVEN_ANSWERS = {  # by loss
    "exact_raw": "fine-tuned with the exact gradient of the expected reward over listed candidates",
    "exact_arcsine": "fine-tuned with the exact gradient of the scaled reward over listed candidates",
    "exact_log": "fine-tuned with the exact gradient of the log of the expected reward over listed candidates",
    "sft": "fine-tuned with supervised learning of labels (SFT)",
}


def write_model_card(folder: Path, *, config: Config, summary: Summary) -> Path:
    """Write `README.md`: base model, data, metrics before and after, configuration and source. Raises OSError."""
    path = folder / "README.md"
    path.write_text(make_model_card(config, summary), encoding="utf-8")
    return path


def make_model_card(config: Config, summary: Summary) -> str:
    """Return the card of the weights that a run exported, as Markdown with a YAML head."""
    base, data = _hide_path(config.model.path), _hide_path(config.data.path)
    revision = f" at revision `{config.model.revision}`" if config.model.revision else ""
    sampled = _name_objective(config)
    method = _ON_GIVEN_ANSWERS.get(config.loss, f"fine-tuned with {sampled}")
    if config.sampled_prompts and config.method != "grpo":
        method = f"{method}, and {sampled},"
    adapters = f", by adapters of rank {config.lora.rank} (LoRA)" if config.lora.rank else ""
    size = config.data.image_size
    images = f"resized to {size}x{size}" if size else "at their own size"
    return f"""---
{yaml.safe_dump(_make_head(config), sort_keys=False)}---

# {config.name}

`{base}`{revision}, {method}{adapters} on `{data}` (split `{config.data.split}`) by Rollcall.

| held-out accuracy, greedy | |
|---|---|
| before | {_format_share(summary.accuracy_before)} |
| after | {_format_share(summary.accuracy_after)} |

- Trained for {summary.steps} steps ({summary.outcome}). Each step learns from {_describe_step(config)}.
- Learning rate {config.learner.lr:g}; {_describe_kl(config)}.
- Images go to the processor {images}; prompts are in `{config.data.mode}` mode.
{_describe_gap(config, summary)}- Configuration `{summary.config_hash}`, source `{summary.git_sha}`.
"""


def _name_objective(config: Config) -> str:
    """Return how sampled completions were learnt from: GRPO, or GRPO with the preset or loss that it took."""
    objective = config.objective
    if objective.preset not in (None, "grpo"):
        return f"GRPO (objective {objective.preset})"
    return "GRPO" if objective.loss == "grpo" else f"GRPO (loss {objective.loss})"


def _make_head(config: Config) -> dict[str, Any]:
    """Make the head that the Hugging Face hub reads."""
    methods = [config.method, "grpo"] if config.sampled_prompts else [config.method]
    head: dict[str, Any] = {
        "library_name": "peft" if config.checkpoint.export == "adapter" else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["rollcall", *dict.fromkeys(methods), "image-classification"],
    }
    head |= {"base_model": config.model.path} if _is_hub_id(config.model.path) else {}
    return head | ({"datasets": [config.data.path]} if _is_hub_id(config.data.path) else {})


def _describe_step(config: Config) -> str:
    """Say what one step learns from: `16 prompts with 4 sampled completions each`."""
    sampled, given = config.sampled_prompts, config.rollout.prompts_per_step - config.sampled_prompts
    parts = []
    if given:
        answers = {"exact": "every candidate of each", "sft": "the label of each"}[config.method]
        parts.append(f"{given} prompts with {answers}")
    if sampled:
        by = " by GRPO" if given else ""
        each = "on average" if config.signal.max_group_size else "each"
        parts.append(f"{sampled} prompts with {config.rollout.group_size} sampled completions {each}{by}")
    return " and ".join(parts)


def _describe_gap(config: Config, summary: Summary) -> str:
    """Write the line on engine and learner; none where nothing was sampled to compare."""
    if not config.sampled_prompts:
        return ""
    return f"- Largest log-prob difference between engine and learner: {summary.max_logprob_gap:.1e}.\n"


def _describe_kl(config: Config) -> str:
    return f"KL weight {config.learner.beta:g}" if config.learner.beta else "no KL to a reference"


def _is_hub_id(place: str) -> bool:
    return not place.startswith(("embedded:", "/", ".")) and place.count("/") == 1 and not Path(place).exists()


def _hide_path(place: str) -> str:
    """Return a hub id as it is, and only the last part of a path: the rest would tell about this machine."""
    return place if _is_hub_id(place) or place.startswith("embedded:") else Path(place).name


def _format_share(accuracy: float | None) -> str:
    return "not evaluated" if accuracy is None else f"{accuracy:.3f}"
