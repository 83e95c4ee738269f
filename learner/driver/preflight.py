"""Everything that can be refused before a cluster is touched: model, data, prompts, reward functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config.schema import EMBEDDED_MODEL, Config, ModelConfig
from common.data.lint import lint_sources
from common.data.reshuffle import Reshuffle
from common.data.sources import ExampleSource, load, load_held_out
from common.data.stream import PromptStream
from common.labels.aliases import check_aliases
from common.labels.candidates import candidates
from common.labels.closed_set import ClosedSet
from common.labels.lint import settle, unanswerable
from common.models.families import Family, family_of
from common.models.processor import banned_token_ids, eos_token_ids, load_model_config, load_processor
from common.models.prompts import PromptEncoder
from common.object_store import share_features
from learner.driver.offline_groups import OfflineGroups
from learner.evaluation.sets import EvaluationSet, check_best_by, read_sets, with_closed_set
from learner.model.vision_features import ENGINE_TAKES_FEATURES
from rollout.rewards.loading import check_functions, find_functions_with
from rollout.rewards.preflight import check_rewards

CPUINFO = Path("/proc/cpuinfo")  # Linux's


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What the driver knows of a model: its files but for the weights."""

    kind: str  # model_type
    family: Family
    path: str  # folder or hub id: `embedded:tiny` has been made
    encoder: PromptEncoder
    closed_set: ClosedSet
    banned: tuple[int, ...]  # token ids neither side gives any probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What a configuration names, read and checked."""

    config: Config
    family: Family
    model_path: str  # folder or hub id: `embedded:tiny` has been made
    train: ExampleSource
    held_out: ExampleSource | None
    sets: tuple[EvaluationSet, ...]  # the held-out rows first, if there are any
    reshuffle: Reshuffle | None
    encoder: PromptEncoder
    closed_set: ClosedSet
    banned: tuple[int, ...]  # token ids neither side gives any probability
    tower_frozen: bool  # the vision tower is not trained, and engines of this family take what it makes of a picture

    def stream(self) -> PromptStream:
        """Training prompts from the beginning."""
        size = self.config.rollout.prompts_per_step
        return PromptStream(self.train, seed=self.config.seed, prompts_per_step=size, worded=self.reshuffle)


def admit(config: Config, *, say: Callable[[str], None]) -> Admitted:
    """Read and check all a run needs, cheapest first.

    Raises:
        RollcallError: naming what cannot be used and how to mend it.
    """
    check_functions(config.reward)
    train, held_out = load(config.data, split=config.data.split), load_held_out(config.data)
    sets = read_sets(config, held_out)
    held = len(held_out) if held_out else 0
    say(f"data: {len(train)} rows to learn from, {held} held out, {len(train.labels)} labels")
    if config.epochs is not None:
        passes, config = config.epochs, config.with_epochs_as_steps(len(train))
        say(f"epochs: {passes} of them are {config.steps} steps of {config.rollout.prompts_per_step} prompts")
    sources = [source for source in (train, held_out) if source]
    _check_aliases(config, [*sources, *(one.source for one in sets)], say)
    how = config.data.reshuffle
    reshuffle = None if how == "none" else Reshuffle(train, seed=config.seed, anew=how == "draw")
    findings = lint_sources(sources, mode=config.data.mode, drawn_from=reshuffle.pool if reshuffle else ())
    settle(config.data.path, findings, say=say)
    check_rewards(config, train.outlines)
    model, size = read_model(config), config.rollout.group_size
    if not model.family.shared_prefix:
        say(
            f"warning: nobody has tried {model.kind} here: the learner reads every prompt {size} times "
            f"instead of once, in up to {size} times the time and memory"
        )
    _check_arithmetic(config, say)
    model.encoder.check(train)
    sets = admit_sets(config, sets, model, say=say)
    if reshuffle:
        visits = math.ceil(config.steps * config.rollout.prompts_per_step / len(train))
        model.encoder.check(train, reshuffle.visits(train, visits))
    check_lengths(config, sources, model.encoder.count, say)
    if config.method != "grpo":
        OfflineGroups(config, model.closed_set).check(train)
    admitted = Admitted(
        config=config,
        family=model.family,
        model_path=model.path,
        train=train,
        held_out=held_out,
        sets=tuple(sets),
        reshuffle=reshuffle,
        encoder=model.encoder,
        closed_set=model.closed_set,
        banned=model.banned,
        tower_frozen=config.towers_frozen and model.kind in ENGINE_TAKES_FEATURES,
    )
    check_best_by(config, sets)
    if find_functions_with(config.reward.functions, "candidate_probabilities"):
        admitted.closed_set.answers(list_candidates(train))  # refuses what this model cannot say
    admitted.stream()  # refuses fewer rows than a step takes
    return admitted


def read_model(config: Config) -> ModelFiles:
    """Raises ModelError when it cannot be read."""
    model = make_embedded(config)
    model_config, processor = load_model_config(model), load_processor(model)
    family, ends = family_of(model_config), eos_token_ids(model)
    banned = banned_token_ids(model_config, processor.tokenizer, ends)
    return ModelFiles(
        kind=model_config.model_type,
        family=family,
        path=model.path,
        encoder=PromptEncoder(processor, config.data, family=family, share=share_features),
        closed_set=ClosedSet(processor, mode=config.data.mode, ends=ends, banned=banned),
        banned=banned,
    )


def admit_sets(
    config: Config, sets: Sequence[EvaluationSet], model: ModelFiles, *, say: Callable[[str], None]
) -> list[EvaluationSet]:
    """The sets, each prompt of them measured. Raises DataError for what the model cannot be asked."""
    for one in sets:
        model.encoder.check(one.source)
    return [with_closed_set(one, model.closed_set, config, say=say) for one in sets]


def _check_aliases(config: Config, sources: Sequence[ExampleSource], say: Callable[[str], None]) -> None:
    labels = {label for source in sources for label in (*list_candidates(source), *source.labels)}
    if strange := check_aliases(config.data.aliases, sorted(labels)):
        say(f"warning: data.aliases names {len(strange)} labels that no row has or offers: {', '.join(strange[:5])}")


def check_lengths(
    config: Config, sources: Sequence[ExampleSource], count: Callable[[str], int], say: Callable[[str], None]
) -> None:
    """Raises DataError naming the labels that a completion is too short for: their reward would always be 0."""
    labels = sorted({label for source in sources for label in source.labels})
    limit = config.rollout.max_completion_tokens
    settle(config.data.path, [unanswerable(labels, config.data.aliases, count, limit)], say=say)


def list_candidates(source: ExampleSource) -> list[str]:
    """Every candidate of any row."""
    problems = {outline.problem for outline in source.outlines}
    return sorted({label for problem in problems for label in candidates(problem) or ()})


def _check_arithmetic(config: Config, say: Callable[[str], None]) -> None:
    """Of this machine; the cluster's others are taken to be like it."""
    if config.cluster.device != "cpu" or config.model.dtype != "bfloat16" or not CPUINFO.exists():
        return
    if not re.search(r"\b(avx512_|amx_)?bf16\b", CPUINFO.read_text()):
        say(
            "warning: this processor has no bfloat16 arithmetic: matrix products take ten times as long as in float32; "
            "model.dtype=float32 does not"
        )


def make_embedded(config: Config) -> ModelConfig:
    """The model to read, once `embedded:tiny` has been made."""
    if config.model.path != EMBEDDED_MODEL:
        return config.model
    from learner.embedded.model import ensure_model

    return config.model.model_copy(update={"path": str(ensure_model(data=config.data))})
