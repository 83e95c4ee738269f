"""Third step: the model's files but for its weights, and every training row held against them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.config.schema import EMBEDDED_MODEL, LOCAL_CLUSTER, Config, ModelConfig
from common.errors import ModelError, raise_as
from common.labels.closed_set import ClosedSet
from common.lean_imports import pause_collector, without_compiler
from common.models.consistency import check_architecture, check_image_processor, check_rope
from common.models.families import Family, family_of
from common.models.processor import banned_token_ids, eos_token_ids, load_model_config, load_processor
from common.models.prompts import PromptEncoder
from common.models.vocabulary import check_vocabulary, find_beyond
from common.models.weight_files import check_folder
from common.models.weights import check_weights
from common.object_store import share_features
from learner.driver.preflight.data import RunData
from learner.driver.preflight.labels import RunLabels, check_lengths
from learner.driver.preflight.sizes import check_lengths_fit
from learner.model.vision_features import ENGINE_TAKES_FEATURES
from learner.trainer.offline_groups import OfflineGroups
from rollout.rewards.loading import find_functions_with

CPUINFO = Path("/proc/cpuinfo")  # Linux's


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What the driver knows of a model: its files but for the weights."""

    kind: str  # model_type
    family: Family
    path: str  # folder or hub id; of `embedded:tiny` the folder it was made in
    encoder: PromptEncoder
    closed_set: ClosedSet
    banned: tuple[int, ...]  # token ids neither side gives any probability
    unused: tuple[str, ...]  # tokens of the tokenizer that the model has no row for
    caches_vision: bool  # engine and learner take vision features, computed once a picture, in place of pixels


def check_model(config: Config, data: RunData, labels: RunLabels, *, say: Callable[[str], None]) -> ModelFiles:
    """Read the model and refuse what it could not read or say of the training rows.

    Raises:
        ModelError: its files cannot be read, or its family is none of ours.
        DataError: naming the rows whose prompt is too long, or whose answer it could not give.
    """
    model = read_model(config)
    if not model.family.shared_prefix:
        say(f"warning: nobody has tried {model.kind} here{describe_unshared(config)}")
    if model.unused:
        named = repr(model.unused[0])
        say(f"warning: the model has no rows for {len(model.unused)} tokens of its tokenizer, such as {named}")
    if model.encoder.changing:
        say(
            f"warning: the chat template holds {model.encoder.changing}: its prompts may differ from one day to another"
        )
    _warn_of_arithmetic(config, say)
    model.encoder.check(data.train)
    if labels.reshuffle:
        visits = math.ceil(config.steps * config.rollout.prompts_per_step / len(data.train))
        model.encoder.check(data.train, labels.reshuffle.visits(data.train, visits))
    check_lengths(config.data.path, config, data.own, model.encoder.count, say=say)
    if config.method != "grpo":
        OfflineGroups(config, model.closed_set).check(data.train)
    if find_functions_with(config.reward.functions, "candidate_probabilities"):
        model.closed_set.answers(labels.offered)  # refuses what this model cannot say
    return model


def read_model(config: Config) -> ModelFiles:
    """Read configuration and processor of `model.path`. Raises ModelError when they, or the weights, cannot be read."""
    with pause_collector(), without_compiler():
        model = make_embedded(config)
        with raise_as(ModelError, f"model.path = {model.path} cannot be read", remedy="check the path"):
            local = Path(model.path).expanduser().is_dir()
        if local:
            check_folder(Path(model.path).expanduser())
        model_config, processor = load_model_config(model), load_processor(model)
        check_rope(model.path, model_config)
        check_image_processor(model.path, model_config, processor.image_processor)
        if model is config.model:  # the embedded one is compared with what was built
            check_architecture(model.path, model_config)
            check_weights(model, model_config, here=config.cluster.resolve_address() == LOCAL_CLUSTER)
    check_lengths_fit(config, model_config)
    family, ends = family_of(model_config), eos_token_ids(model)
    check_vocabulary(model.path, model_config, processor, ends)
    banned = banned_token_ids(model_config, processor.tokenizer, ends)
    return ModelFiles(
        kind=model_config.model_type,
        family=family,
        path=model.path,
        encoder=PromptEncoder(
            processor,
            config.data,
            family=family,
            vocab_size=model_config.get_text_config().vocab_size,
            image_token_id=getattr(model_config, "image_token_id", None),
            share=share_features,
            reads=False,
        ),
        closed_set=ClosedSet(processor, mode=config.data.mode, ends=ends, banned=banned),
        banned=banned,
        unused=tuple(find_beyond(model_config, processor.tokenizer)),
        caches_vision=config.towers_frozen and model_config.model_type in ENGINE_TAKES_FEATURES,
    )


def make_embedded(config: Config) -> ModelConfig:
    """Return where the model is read from; `embedded:tiny` is made first, for the labels of the data."""
    if config.model.path != EMBEDDED_MODEL:
        return config.model
    from learner.embedded.model import ensure_model

    return config.model.model_copy(update={"path": str(ensure_model(data=config.data))})


def describe_unshared(config: Config) -> str:
    """Say what a prompt costs that the completions of its group do not share: nothing where it has one completion."""
    if config.method == "sft":
        return ""
    times = f"{config.largest_group} times" if config.method == "grpo" else "once for each candidate"
    return f": the learner reads every prompt {times} instead of once, in up to as many times the time and memory"


def _warn_of_arithmetic(config: Config, say: Callable[[str], None]) -> None:
    """Warn where this machine has no bfloat16; the cluster's others are taken to be like it."""
    if config.cluster.device != "cpu" or config.model.dtype != "bfloat16" or not CPUINFO.exists():
        return
    if not re.search(r"\b(avx512_|amx_)?bf16\b", CPUINFO.read_text()):
        say(
            "warning: this processor has no bfloat16 arithmetic: matrix products take ten times as long as in float32; "
            "model.dtype=float32 does not"
        )
