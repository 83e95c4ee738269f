"""Requests of prompts: sampled ones for a training step, greedy ones for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.config.schema import RolloutConfig
from common.types import GenerationRequest, Prompt, Sampling, request_seed


def training_requests(
    prompts: Sequence[Prompt], rollout: RolloutConfig, *, seed: int, step: int, sizes: Sequence[int] | None = None
) -> list[GenerationRequest]:
    """Ask for sampled completions, seeded by (run, step, prompt): any engine draws the same tokens.

    Args:
        sizes: completions of each prompt; None: G of each.
    """
    alike = Sampling(
        n=rollout.group_size,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        max_tokens=rollout.max_completion_tokens,
    )
    return [
        request(prompt, replace(alike, n=size), seed=request_seed(seed, step, prompt.id))
        for prompt, size in zip(prompts, sizes or [rollout.group_size] * len(prompts), strict=True)
    ]


def greedy_requests(prompts: Sequence[Prompt], rollout: RolloutConfig) -> list[GenerationRequest]:
    """Ask for one greedy completion a prompt."""
    sampling = Sampling(n=1, temperature=0.0, top_p=1.0, top_k=0, max_tokens=rollout.max_completion_tokens)
    return [request(prompt, sampling, seed=0) for prompt in prompts]


def request(prompt: Prompt, sampling: Sampling, *, seed: int) -> GenerationRequest:
    """Ask for completions of a prompt, by the very ids and pixels that the learner reads."""
    return GenerationRequest(
        prompt_id=prompt.id,
        token_ids=prompt.token_ids,
        images=prompt.images,
        seed=seed,
        sampling=sampling,
    )
