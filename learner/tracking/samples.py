"""Which groups of a step are kept to look at, and the row of `samples.jsonl` that each becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from common.labels.candidates import candidates
from common.types import ScoredGroup


def choose_samples(groups: Sequence[ScoredGroup], count: int) -> Iterator[tuple[ScoredGroup, str]]:
    """Choose the first `count` groups of a step, then the one of highest and the one of lowest mean reward; none twice.

    Yields each with why it is kept: `first`, `best` or `worst`.
    """
    wanted = [(group, "first") for group in groups[:count]]
    if groups:
        wanted += [(max(groups, key=_mean_reward), "best"), (min(groups, key=_mean_reward), "worst")]
    kept: set[int] = set()
    for group, kept_for in wanted:
        if id(group) not in kept:
            kept.add(id(group))
            yield group, kept_for


def _mean_reward(group: ScoredGroup) -> float:
    return sum(group.rewards) / len(group.rewards)


def sample_row(
    step: int, image: str | None, group: ScoredGroup, kept_for: str, advantages: Sequence[float] | None
) -> dict[str, Any]:
    """Make the row of a kept group.

    Args:
        image: path of its thumbnail in the run folder; None without a picture.
        kept_for: why it is kept, as `choose_samples` says.
        advantages: (G,); None where nothing was sampled.
    """
    example, said, given = group.prompt.example, group.group.completions, group.group.origin == "given"
    shown = [None] * len(said) if advantages is None else advantages
    completions = [
        {
            "text": completion.text,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "reward": group.rewards[number],
            "advantage": advantage,  # null where nothing was sampled
            **{f"rewards/{name}": values[number] for name, values in group.rewards_by_name.items()},
        }
        for number, (completion, advantage) in enumerate(zip(said, shown, strict=True))
    ]
    return {
        "step": step,
        "kept_for": kept_for,
        "prompt_id": group.prompt.id,
        "image": image,
        "problem": example.problem,
        "candidates": candidates(example.problem),
        "label": example.label,
        "origin": group.group.origin,
        "engine_id": group.group.engine_id,
        "weights_version": group.group.weights_version,
        "completions": completions,
        # (G,) of each whole answer, as sampled
        "logprobs": None if given else [sum(completion.logprobs) for completion in said],
    }
