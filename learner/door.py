"""Everything that can be refused before a cluster is touched: model, data, prompts, reward functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.aliases import check_aliases
from common.candidates import candidates
from common.closed_set import ClosedSet
from common.config import EMBEDDED_MODEL, Config, ModelConfig
from common.data.sources import ExampleSource, load, load_held_out
from common.data.stream import PromptStream
from common.families import Family, family_of
from common.handles import shared
from common.processor import banned_token_ids, eos_token_ids, load_model_config, load_processor
from common.prompts import PromptEncoder
from learner.tower import TAKEN
from rollout.rewards.loading import check_functions

CPUINFO = Path("/proc/cpuinfo")  # Linux's


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What a configuration names, read and checked."""

    config: Config
    family: Family
    model_path: str  # folder or hub id: `embedded:tiny` has been made
    train: ExampleSource
    held_out: ExampleSource | None
    encoder: PromptEncoder
    closed_set: ClosedSet
    banned: tuple[int, ...]  # token ids neither side gives any probability
    tower_frozen: bool  # the vision tower is not trained, and engines of this family take what it makes of a picture

    def stream(self) -> PromptStream:
        """Training prompts from the beginning."""
        return PromptStream(self.train, seed=self.config.seed, prompts_per_step=self.config.rollout.prompts_per_step)


def admit(config: Config, *, say: Callable[[str], None]) -> Admitted:
    """Read and check all a run needs, cheapest first.

    Raises:
        RollcallError: naming what cannot be used and how to mend it.
    """
    check_functions(config.reward)
    train, held_out = load(config.data, split=config.data.split), load_held_out(config.data)
    held = len(held_out) if held_out else 0
    say(f"data: {len(train)} rows to learn from, {held} held out, {len(train.labels)} labels")
    if config.epochs is not None:
        passes, config = config.epochs, config.counted(len(train))
        say(f"epochs: {passes} of them are {config.steps} steps of {config.rollout.prompts_per_step} prompts")
    _check_aliases(config, [source for source in (train, held_out) if source], say)
    model = resolved(config)
    model_config, processor = load_model_config(model), load_processor(model)
    family, size = family_of(model_config), config.rollout.group_size
    if not family.shared_prefix:
        say(
            f"warning: nobody has tried {model_config.model_type} here: the learner reads every prompt {size} times "
            f"instead of once, in up to {size} times the time and memory"
        )
    _check_arithmetic(config, say)
    encoder = PromptEncoder(processor, config.data, family=family, share=shared)
    for source in filter(None, (train, held_out)):
        encoder.check(source)
    ends = eos_token_ids(model)
    banned = banned_token_ids(model_config, processor.tokenizer, ends)
    admitted = Admitted(
        config=config,
        family=family,
        model_path=model.path,
        train=train,
        held_out=held_out,
        encoder=encoder,
        closed_set=ClosedSet(processor, mode=config.data.mode, ends=ends, banned=banned),
        banned=banned,
        tower_frozen=config.towers_frozen and model_config.model_type in TAKEN,
    )
    admitted.stream()  # refuses fewer rows than a step takes
    return admitted


def _check_aliases(config: Config, sources: Sequence[ExampleSource], say: Callable[[str], None]) -> None:
    problems = {outline.problem for source in sources for outline in source.outlines}
    offered = {label for problem in problems for label in candidates(problem) or ()}
    labels = offered.union(*(source.labels for source in sources))
    if strange := check_aliases(config.data.aliases, sorted(labels)):
        say(f"warning: data.aliases names {len(strange)} labels that no row has or offers: {', '.join(strange[:5])}")


def _check_arithmetic(config: Config, say: Callable[[str], None]) -> None:
    """Of this machine; the cluster's others are taken to be like it."""
    if config.cluster.device != "cpu" or config.model.dtype != "bfloat16" or not CPUINFO.exists():
        return
    if not re.search(r"\b(avx512_|amx_)?bf16\b", CPUINFO.read_text()):
        say(
            "warning: this processor has no bfloat16 arithmetic: matrix products take ten times as long as in float32; "
            "model.dtype=float32 does not"
        )


def resolved(config: Config) -> ModelConfig:
    """The model to read, once `embedded:tiny` has been made."""
    if config.model.path != EMBEDDED_MODEL:
        return config.model
    from learner.embedded import ensure_model

    return config.model.model_copy(update={"path": str(ensure_model(data=config.data))})
