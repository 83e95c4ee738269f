"""A Hugging Face model in and out: the policy as it starts, the folder it ends in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config import Config
from learner.attention import install

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


def export_model(weights: Mapping[str, Tensor], path: str, config: Config, folder: Path) -> None:
    """Write `weights` in the layout of the model at `path`, every other file of which is taken over."""
    model = load_model(path, config)
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    for file in _model_folder(path, config).iterdir():
        written = (folder / file.name).exists() or file.name.endswith(".index.json")
        if file.suffix in KEPT_FILES and not written:
            shutil.copyfile(file, folder / file.name)


def _model_folder(path: str, config: Config) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in sorted(KEPT_FILES)]
    return Path(snapshot_download(path, revision=config.model.revision, allow_patterns=patterns))
