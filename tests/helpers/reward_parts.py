"""Prompts and groups to score, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.types import Completion, Example, Group, Prompt


def prompt(number: int, label: str, **columns: Any) -> Prompt:
    image = np.zeros((4, 4, 3), np.uint8)
    example = Example(id=f"train/{number}", problem="what", image=image, label=label, columns=columns)
    return Prompt(example=example, text_ids=(1,), token_ids=(1,), images=None)


def group(number: int, texts: Sequence[str]) -> Group:
    completions = tuple(Completion(token_ids=(1,), logprobs=(0.0,), text=text, finish_reason="stop") for text in texts)
    return Group(
        prompt_id=f"train/{number}",
        completions=completions,
        seed=0,
        origin="sampled",
        engine_id="engine-0",
        weights_version=0,
    )
