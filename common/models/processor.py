"""The model's own processor of text and images, and what its configuration says about tokens."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.schema import ModelConfig
from common.errors import ModelError, raise_as
from common.lean_imports import import_transformers
from common.models.chat import ChatRenderer
from common.models.families import FAMILIES, Family, family_of
from common.models.hub import require_hub
from common.models.own_code import check_trust, explain_failure, find_code
from common.models.places import check_place, find_bad_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_GENERATION = "generation_config.json"


def load_model_config(model: ModelConfig) -> PreTrainedConfig:
    """Read the configuration of a model that takes pictures and text.

    Raises ModelError when it cannot be read (within seconds when the hub cannot be reached) or reads no pictures.
    """
    import_transformers()
    from transformers import AutoConfig

    config: PreTrainedConfig = _load(model, AutoConfig)
    if config.model_type not in FAMILIES and not _answers_about_pictures(config):
        raise ModelError(
            f"model.path = {model.path} does not answer questions about pictures",
            got=f"model_type {config.model_type}",
            remedy=f"use a model of one of the families {', '.join(FAMILIES)}",
        )
    return config


def _answers_about_pictures(config: PreTrainedConfig) -> bool:
    """Whether transformers lists the model so. That takes seconds of imports, which our own families need not pay."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    return config.model_type in KNOWN


def load_processor(model: ModelConfig) -> Any:
    """Read tokenizer, image processor and chat template, with `min_pixels` and `max_pixels` of `model` applied.

    Raises ModelError as `load_model_config` does, and when a part is missing or cannot be set.
    """
    from transformers import AutoProcessor

    family = family_of(load_model_config(model))
    processor: Any = _load(model, AutoProcessor)
    parts = ("image_processor", "tokenizer", "chat_template")
    if missing := [part.replace("_", " ") for part in parts if not getattr(processor, part, None)]:
        raise ModelError(
            f"model.path = {model.path} has no {' and no '.join(missing)}",
            got=type(processor).__name__,
            remedy="use an instruction-tuned model, with its preprocessor, tokenizer and chat template files",
        )
    path = str(Path(model.path).expanduser())
    processor.apply_chat_template = ChatRenderer(processor.apply_chat_template, path=path, revision=model.revision)
    if size := image_size(model, family):
        # Files say min_pixels or size; this attribute is what every image processor of transformers 5 reads.
        processor.image_processor.size = size
    return processor


def image_size(model: ModelConfig, family: Family) -> dict[str, int] | None:
    """Return the image processor's `size` in a family that bounds pixels; None in others.

    Raises ModelError for limits that are set and have no effect.
    """
    limits = (model.min_pixels, model.max_pixels)
    if family.pixel_limits is None:
        if limits != (None, None):
            raise ModelError(
                "model.min_pixels and model.max_pixels have no effect in this family: its processor has its own sizes",
                got=f"model.path = {model.path} with limits {limits}",
                remedy="leave them out, and set data.image_size if the pictures are too large",
            )
        return None
    least, most = (own if limit is None else limit for limit, own in zip(limits, family.pixel_limits, strict=True))
    if least > most:
        raise ModelError(
            "model.min_pixels is above model.max_pixels",
            got=f"{least} and {most}, null standing for the family's own",
            remedy="set both",
        )
    return {"shortest_edge": least, "longest_edge": most}


def eos_token_ids(model: ModelConfig) -> frozenset[int]:
    """Return every id that ends an answer by the model's generation config; none where it names none.

    Raises ModelError for a generation config that cannot be read.
    """
    from transformers import GenerationConfig
    from transformers.utils.hub import cached_file

    path, revision = str(Path(model.path).expanduser()), model.revision or "main"
    config = load_model_config(model)
    if cached_file(path, _GENERATION, revision=revision, _raise_exceptions_for_missing_entries=False):
        eos = _load(model, GenerationConfig).eos_token_id
    else:
        eos = config.get_text_config().eos_token_id
    return frozenset(eos if isinstance(eos, list | tuple) else () if eos is None else (eos,))


def banned_token_ids(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int] = ()
) -> tuple[int, ...]:
    """Return the ids to which neither engine nor learner gives any probability, ascending (fault 9).

    They are the tokens of pictures and video, which the learner's forward pass would take for features, and the marks
    around them. The pad token is one too, unless it ends answers, as in Qwen2-VL. So are rows of the vocabulary that
    stand for no token. What ends an answer (`eos_ids`, the tokenizer's EOS) is never banned.
    """
    named: set[int | None] = {
        getattr(config, f"{name}_token_id", None) for name in ("vision_start", "vision_end", "image", "video")
    }
    vocabulary = tokenizer.get_vocab()
    named |= {vocabulary.get(token) for token in family_of(config).marks} | {tokenizer.pad_token_id}
    empty = range(max(vocabulary.values()) + 1, config.get_text_config().vocab_size)
    allowed = {tokenizer.eos_token_id, *eos_ids}
    banned = (token for token in {*named, *empty} if token is not None and token not in allowed)
    return tuple(sorted(token for token in banned if token < config.get_text_config().vocab_size))


def _load(model: ModelConfig, kind: Any) -> Any:
    """Load a part of the model, local or from the hub. Raises ModelError when that fails, ConfigError for its code."""
    with raise_as(ModelError, f"model.path = {model.path} cannot be read", remedy="check the path"):
        local = Path(model.path).expanduser().is_dir()
    if not local:
        check_place(model.path)
        require_hub(f"model.path = {model.path}", error=ModelError)
    check_trust(model)
    path = str(Path(model.path).expanduser()) if local else model.path
    try:
        return kind.from_pretrained(path, revision=model.revision or "main", trust_remote_code=model.trust_remote_code)
    except Exception as error:  # the files are not ours, and the Rust tokenizer raises bare Exception
        if local and not find_code(path, model.revision) and (fault := find_bad_file(Path(path))):
            raise ModelError(
                f"model.path = {model.path} cannot be read",
                got=fault,
                remedy="give a complete model folder, with its files as they were published",
            ) from error
        raise ModelError(
            f"model.path = {model.path} cannot be read",
            got=explain_failure(path, model.revision, error),
            remedy="give a complete model folder or a hub id; private ones need a login; "
            "HF_HUB_OFFLINE=1 reads only the local cache; code of a model runs only with model.trust_remote_code=true",
        ) from error
