"""Show a plan as lines to read, with what to change where it does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from common.config.schema import Config, ModelConfig
from learner.memory.pace import (
    BANDWIDTH_SHARE,
    LEARNING_SHARE,
    ROOFLINES,
    SAMPLING_SHARE,
    USUAL,
    compute_pace,
    count_engines,
    find_roofline,
)
from learner.memory.plan import Plan, Share, plan

GIB = 2**30


def device_memory(config: Config) -> tuple[str, int] | None:
    """Return name and bytes of the memory one process computes in; None when there is no such device here."""
    if config.cluster.device == "cpu":
        return "this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(0)
    return device.name, device.total_memory


def show_plan(made: Plan, model: ModelConfig, device: tuple[str, int] | None) -> Iterator[str]:
    """Yield the plan as lines to read; where it does not fit `device`, with remedies and what each would take."""
    config, counts = made.config, made.counts
    total, vision, trained = (_count(number) for number in (counts.total, counts.vision, counts.trained))
    yield f"{total} parameters, {vision} of them vision, {trained} trained; ZeRO-{config.learner.zero_stage}"
    yield f"largest pack: {made.pack}"
    yield ""
    yield from _table(f"each of {config.learner.ranks} learner rank(s)", made.rank)
    yield ""
    yield from _table(f"each of {config.rollout.max_engines} engine(s)", made.engine)
    yield ""
    yield from _table("the machine", made.host)
    yield ""
    needed = made.rank.nbytes
    if config.cluster.device == "cpu":
        needed = config.learner.ranks * needed + config.rollout.max_engines * made.engine.nbytes + made.host.nbytes
        yield _row("in all", needed)
    if device is None:
        yield "no GPU here to hold it against"
        return
    name, there = device
    room = int(there * min(1.0, config.learner.gpus_per_rank)) if config.cluster.device == "cuda" else there
    if needed <= room:
        yield f"fits: {name} has {_size(room)} for it"
        return
    yield f"does not fit: {name} has {_size(room)} for it. A learner rank takes {_size(made.rank.nbytes)};"
    for remedy, other in _remedies(config):
        instead = plan(other, model).rank.nbytes
        if instead < made.rank.nbytes:
            yield _row("  it would take", instead, f"with {remedy}")


def show_pace(made: Plan, model_config: Any, gpu: str | None) -> Iterator[str]:
    """Yield how long a step takes on GPUs, as lines to read, and what that says of engines, lag and prompts.

    Args:
        gpu: its name; None where there is none here.
    """
    config, rollout = made.config, made.config.rollout
    if config.cluster.device == "cpu" or not config.sampled_prompts:
        return
    known = find_roofline(gpu or USUAL)
    yield ""
    if known is None or made.counts.itemsize != 2:
        yield f"pace: unknown for {gpu or USUAL} in {config.model.dtype}; known are {', '.join(ROOFLINES)} in bfloat16"
        return
    name, line = known
    pace = partial(
        compute_pace, made.counts, model_config, config, tokens=made.tokens, pictures=made.pictures, gpu=line
    )
    own, ranks = pace(engines=rollout.max_engines), config.learner.ranks
    at = f"{SAMPLING_SHARE:.0%} and {LEARNING_SHARE:.0%} of its arithmetic and {BANDWIDTH_SHARE:.0%} of its bandwidth"
    yield f"a step by the roofline of {'an' if name[0] in 'AHL' else 'a'} {name}, not measured: {at}"
    yield _time("  prompts", own.prefill, f"each of {rollout.max_engines} engine(s)")
    yield _time("  completions", own.decode, f"of {rollout.max_completion_tokens} tokens, the longest")
    yield _time("  learning", own.learn, f"on {ranks} rank(s)")
    yield _time("  publishing", own.publish)
    for lag in (0, 1):
        yield _time("  in all", own.step(max_lag=lag), f"with rollout.max_lag={lag}")

    enough = count_engines(lambda engines: pace(engines=engines), rollout.prompts_per_step)
    if enough is None:
        yield "  no number of engines keeps up with the learner: a completion takes longer than to learn from all"
    else:
        yield f"  rollout.engines={enough} keeps up with the learner"
    full = rollout.max_engines * rollout.max_sequences // rollout.group_size
    if full > rollout.prompts_per_step:
        yield f"  engines are not full: up to rollout.prompts_per_step={full} completions take little longer"


def _time(name: str, seconds: float, about: str = "") -> str:
    return f"{name:<24}{seconds:>9.3g} s  {about}".rstrip()


def _table(title: str, share: Share) -> Iterator[str]:
    yield title
    for part in (*share.parts, *share.passing):
        yield _row(f"  {part.name}", part.nbytes, part.about)
    yield _row("  at its highest", share.nbytes)


def _row(name: str, nbytes: int, about: str = "") -> str:
    return f"{name:<24}{_size(nbytes):>11}  {about}".rstrip()


def _size(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB else f"{nbytes / 2**20:.1f} MiB"


def _count(elements: int) -> str:
    return f"{elements / 1e9:.2f} G" if elements >= 1e9 else f"{elements / 1e6:.2f} M"


def _remedies(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield changes that may help and that a run would accept, each with its configuration, the cheapest first."""
    model, learner, data = config.model, config.learner, config.data

    def change(section: str, **values: Any) -> tuple[str, Config]:
        words = ", ".join(f"{section}.{key}={value}" for key, value in values.items())
        update = {section: getattr(config, section).model_copy(update=values)}
        return words.replace("True", "true"), config.model_copy(update=update)

    if not model.gradient_checkpointing:
        yield change("model", gradient_checkpointing=True)
    if learner.ranks > 1 and learner.zero_stage < 3:
        yield change("learner", zero_stage=3)
    if not config.towers_frozen:
        yield change("lora", targets="language") if config.lora.rank else change("model", freeze_vision=True)
    follows = learner.reference_reset_every is not None or learner.reference_ema is not None
    if not config.lora.rank and not follows:  # adapters have the model without them for a reference
        vision_too = model.freeze_vision and config.lora.targets != "language"  # which cannot go together
        yield change("lora", rank=16, targets="language") if vision_too else change("lora", rank=16)
    if learner.zero_stage and learner.offload == "none" and config.cluster.device == "cuda":
        yield change("learner", offload="optimizer")
    yield change("learner", tokens_per_pack=max(1, learner.tokens_per_pack // 2))
    yield change("data", max_prompt_tokens=max(1, data.max_prompt_tokens // 2))
    yield change("rollout", max_completion_tokens=max(1, config.rollout.max_completion_tokens // 2))
