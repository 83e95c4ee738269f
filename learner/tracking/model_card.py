"""The model card that goes with exported weights."""

from __future__ import annotations

from pathlib import Path

import yaml

from common.config.schema import Config
from learner.tracking.records import Summary


def write_model_card(folder: Path, *, config: Config, summary: Summary) -> Path:
    """Write `README.md`: base model, data, metrics before and after, configuration and source. Raises OSError."""
    base, data = _public(config.model.path), _public(config.data.path)
    front = {
        "library_name": "peft" if config.checkpoint.export == "adapter" else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["rollcall", "grpo", "image-classification"],
    }
    front |= {"base_model": base} if _is_hub_id(config.model.path) else {}
    front |= {"datasets": [data]} if _is_hub_id(config.data.path) else {}
    size = config.data.image_size
    revision = f" at revision `{config.model.revision}`" if config.model.revision else ""
    text = f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {config.name}

`{base}`{revision}, fine-tuned with GRPO on `{data}` (split `{config.data.split}`) by Rollcall.

| held-out accuracy, greedy | |
|---|---|
| before | {_share(summary.accuracy_before)} |
| after | {_share(summary.accuracy_after)} |

- Trained for {summary.steps} steps ({summary.outcome}), {config.rollout.prompts_per_step} prompts of \
{config.rollout.group_size} completions a step, learning rate {config.learner.lr:g}, KL weight {config.learner.beta:g}.
- Images {f"are resized to {size}x{size}" if size else "keep their size"}; prompts are in `{config.data.mode}` mode.
- Largest log-prob difference between engine and learner: {summary.max_logprob_gap:.1e}.
- Configuration `{summary.config_hash}`, source `{summary.git_sha}`.
"""
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def _is_hub_id(place: str) -> bool:
    return not place.startswith(("embedded:", "/", ".")) and place.count("/") == 1 and not Path(place).exists()


def _public(place: str) -> str:
    """A hub id as it is; of a path only the last part: where it lay is nobody's business."""
    return place if _is_hub_id(place) or place.startswith("embedded:") else Path(place).name


def _share(accuracy: float | None) -> str:
    return "not evaluated" if accuracy is None else f"{accuracy:.3f}"
