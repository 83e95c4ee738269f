"""Load a Hugging Face model to train, know it again in a checkpoint, and export it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config.schema import Config
from common.errors import CheckpointError, ModelError
from common.models.own_code import explain_failure
from common.storage.output import follow_umask
from learner.model.attention import install

KEPT_FILES = {".json", ".jinja", ".txt", ".model"}  # processor, tokenizer and chat template, not weights

GENERATION = "generation_config.json"


def load_model(path: str, config: Config) -> Any:
    """Load the Hugging Face model into this machine's memory, in the configured dtype and way to attend.

    Raises ModelError when its files cannot be read, or lack a tensor: transformers would make it of random numbers.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            revision=config.model.revision,
            trust_remote_code=config.model.trust_remote_code,
            dtype=getattr(torch, config.model.dtype),
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # the files are not ours
        raise ModelError(
            f"the model {path} cannot be loaded to train",
            got=explain_failure(path, config.model.revision, error),
            remedy="give a complete model folder or hub id, with weights as safetensors",
        ) from error
    model, report = loaded
    if absent := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights of {path} lack {len(absent)} tensors of the model",
            got=", ".join(absent[:5]),
            remedy="download the model again with all of its files",
        )
    install(model, config.learner.attention, cuda=config.cluster.device == "cuda")
    return model


def identify_base(model: Any, config: Config) -> dict[str, str | None]:
    """Return what a checkpoint of this model must go with: its path, revision, and a digest of settings and weights."""
    import xxhash

    settings = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version"):
        settings.pop(key, None)
    digest = xxhash.xxh3_128(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return {"path": config.model.path, "revision": config.model.revision, "digest": digest.hexdigest()}


def require_base(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError unless the model is the one the checkpoint in `folder` was trained from."""
    if found["digest"] != wanted["digest"]:
        raise CheckpointError(
            f"the checkpoint {folder} was trained from another model",
            got=f"{found['path']}@{found['revision']} of digest {found['digest']}, "
            f"trained from {wanted['path']}@{wanted['revision']} of {wanted['digest']}",
            remedy="give it back the model it was trained from: a checkpoint holds only what the run changes",
        )


def export_model(weights: Mapping[str, Tensor], path: str, config: Config, folder: Path) -> None:
    """Write `weights` into `folder` in Hugging Face layout, with every other file of the model at `path`."""
    from transformers import GenerationConfig

    model, base = load_model(path, config), _model_folder(path, config)
    model.load_state_dict(weights)
    if (base / GENERATION).is_file():  # copied below: many published ones are such as transformers refuses to write
        model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    for file in base.iterdir():
        written = (folder / file.name).exists() or file.name.endswith(".index.json")
        if file.suffix in KEPT_FILES and (not written or file.name == GENERATION):
            shutil.copyfile(file, folder / file.name)
    follow_umask(folder)


def find_language_prefix(model: Any) -> str:
    """Return how the names of the language model's parameters begin; the head's may begin otherwise."""
    decoder = model.get_decoder()
    prefixes = (f"{name}." for name, module in model.named_modules() if module is decoder)
    return next(prefixes)


def vision_tower_names(model: Any) -> set[str]:
    """Return the state-dict names of vision tower and projector, all that stands before the language model.

    Adapters have none: a name is the one in a model without adapters.
    """
    language, head = find_language_prefix(model), model.get_output_embeddings()
    heads = {name + "." for name, module in model.named_modules() if module is head}
    behind = (language, *heads)
    return {
        name.replace(".base_layer.", ".")
        for name in model.state_dict(keep_vars=True)
        if not name.startswith(behind) and ".lora_" not in name
    }


def freeze_vision_tower(model: Any) -> None:
    """Make vision tower and projector of `model` untrained."""
    frozen = vision_tower_names(model)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def _model_folder(path: str, config: Config) -> Path:
    """Return the folder that holds the other files of a model, from the hub if it is no folder."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in sorted(KEPT_FILES)]
    return Path(snapshot_download(path, revision=config.model.revision, allow_patterns=patterns))
