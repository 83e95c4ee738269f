"""The model's own reader of text and images, and what its configuration says about tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.config import ModelConfig
from common.errors import ModelError
from common.hub import unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Qwen2VLProcessor

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")

Loaded = TypeVar("Loaded")


def load_model_config(model: ModelConfig) -> PreTrainedConfig:
    """The configuration of a Qwen2-VL or Qwen2.5-VL.

    Raises ModelError when it cannot be read (within seconds when the hub cannot be reached) or is of another family.
    """
    from transformers import AutoConfig

    config: PreTrainedConfig = _load(model, AutoConfig.from_pretrained)
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"model.path = {model.path} is of a family that is not supported",
            got=f"model_type {config.model_type}",
            remedy=f"use a model of one of the families {', '.join(FAMILIES)}",
        )
    return config


def load_processor(model: ModelConfig) -> Qwen2VLProcessor:
    """Tokenizer, image processor and chat template, with `min_pixels` and `max_pixels` of `model`.

    Raises ModelError as `load_model_config` does, and when a part is missing.
    """
    from transformers import AutoProcessor, Qwen2_5_VLProcessor, Qwen2VLProcessor

    load_model_config(model)
    found: Any = _load(model, AutoProcessor.from_pretrained)
    parts = {
        "Qwen2-VL processor": isinstance(found, Qwen2VLProcessor | Qwen2_5_VLProcessor),
        "chat template": getattr(found, "chat_template", None),
    }
    if missing := [part for part, there in parts.items() if not there]:
        raise ModelError(
            f"model.path = {model.path} has no {' and no '.join(missing)}",
            got=type(found).__name__,
            remedy="use an instruction-tuned model, with its preprocessor, tokenizer and chat template files",
        )
    processor: Qwen2VLProcessor = found  # the other is the same under another name
    # Files say min_pixels or size; this attribute is what every image processor of transformers 5 reads.
    processor.image_processor.size = {"shortest_edge": model.min_pixels, "longest_edge": model.max_pixels}
    return processor


def eos_token_ids(model: ModelConfig) -> frozenset[int]:
    """Every id that ends an answer, as the model's generation config has it; empty when it has none of its own."""
    from transformers import GenerationConfig

    config = load_model_config(model)
    try:
        eos = GenerationConfig.from_pretrained(model.path, revision=model.revision or "main").eos_token_id
    except OSError:  # no generation_config.json
        eos = config.get_text_config().eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ())


def banned_token_ids(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int] = ()
) -> tuple[int, ...]:
    """Ids that neither engine nor learner gives any probability, ascending.

    Vision tokens, which the learner's forward would take for pictures; the pad token unless it ends answers too, as in
    Qwen2-VL; and rows of the vocabulary that stand for no token. What ends an answer (`eos_ids`, the tokenizer's EOS)
    is never among them.
    """
    named: set[int | None] = {
        getattr(config, f"{name}_token_id", None) for name in ("vision_start", "vision_end", "image", "video")
    }
    vocabulary = tokenizer.get_vocab()
    named |= {vocabulary.get(token) for token in _VISION_TOKENS} | {tokenizer.pad_token_id}
    empty = range(max(vocabulary.values()) + 1, config.get_text_config().vocab_size)
    allowed = {tokenizer.eos_token_id, *eos_ids}
    return tuple(sorted(token for token in {*named, *empty} if token is not None and token not in allowed))


def _load(model: ModelConfig, loader: Callable[..., Loaded]) -> Loaded:
    local = Path(model.path).expanduser().is_dir()
    if not local and (reason := unreachable()):
        raise ModelError(
            f"model.path = {model.path} is no folder and the hub cannot be reached",
            got=reason,
            remedy="check the path or the network; with a copy in the local cache set HF_HUB_OFFLINE=1",
        )
    try:
        return loader(str(Path(model.path).expanduser()) if local else model.path, revision=model.revision or "main")
    except Exception as error:  # the files are not ours, and the Rust tokenizer raises bare Exception
        raise ModelError(
            f"model.path = {model.path} cannot be read",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            remedy="give a complete model folder or a hub id; private ones need a login; "
            "HF_HUB_OFFLINE=1 reads only the local cache",
        ) from error
