"""A Hugging Face model in and out: the policy as it starts, the folder it ends in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config.schema import Config
from common.errors import CheckpointError
from learner.model.attention import install

KEPT_FILES = {".json", ".jinja", ".txt", ".model"}  # processor, tokenizer and chat template, not weights


def load_model(path: str, config: Config) -> Any:
    """The Hugging Face model on this machine's memory, in the configured dtype, attending as configured."""
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForImageTextToText.from_pretrained(
        path, revision=config.model.revision, dtype=getattr(torch, config.model.dtype), attn_implementation="sdpa"
    )
    install(model, config.learner.attention, cuda=config.cluster.device == "cuda")
    return model


def base_identity(model: Any, config: Config) -> dict[str, str | None]:
    """What a checkpoint must go with: where the model came from, and a digest of its configuration and every weight."""
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
    """Raises CheckpointError unless the model is the one the checkpoint in `folder` was trained from."""
    if found["digest"] != wanted["digest"]:
        raise CheckpointError(
            f"the checkpoint {folder} was trained from another model",
            got=f"{found['path']}@{found['revision']} of digest {found['digest']}, "
            f"trained from {wanted['path']}@{wanted['revision']} of {wanted['digest']}",
            remedy="give it back the model it was trained from: a checkpoint holds only what the run changes",
        )


def export_model(weights: Mapping[str, Tensor], path: str, config: Config, folder: Path) -> None:
    """Write `weights` in the layout of the model at `path`, every other file of which is taken over."""
    model = load_model(path, config)
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    for file in _model_folder(path, config).iterdir():
        written = (folder / file.name).exists() or file.name.endswith(".index.json")
        if file.suffix in KEPT_FILES and not written:
            shutil.copyfile(file, folder / file.name)


def language_prefix(model: Any) -> str:
    """What the names of the language model's parameters begin with; head and embedding tied to it apart."""
    decoder = model.get_decoder()
    prefixes = (f"{name}." for name, module in model.named_modules() if module is decoder)
    return next(prefixes)


def tower_names(model: Any) -> set[str]:
    """State-dict names, without adapters', of what stands before the language model: vision tower and projector."""
    language, head = language_prefix(model), model.get_output_embeddings()
    heads = {name + "." for name, module in model.named_modules() if module is head}
    behind = (language, *heads)
    return {
        name.replace(".base_layer.", ".")
        for name in model.state_dict(keep_vars=True)
        if not name.startswith(behind) and ".lora_" not in name
    }


def freeze_towers(model: Any) -> None:
    """Leave what stands before the language model as it is."""
    towers = tower_names(model)
    for name, parameter in model.named_parameters():
        if name in towers:
            parameter.requires_grad_(False)


def _model_folder(path: str, config: Config) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in sorted(KEPT_FILES)]
    return Path(snapshot_download(path, revision=config.model.revision, allow_patterns=patterns))
