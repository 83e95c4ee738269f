"""A Hugging Face home as downloads leave it, so that names of the hub are read with HF_HUB_OFFLINE=1 and no network."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHA = "0" * 40


def put_model(home: Path, name: str, config: Any, processor: Any) -> None:
    """Everything of a model, its weights with nothing in them: see `write_weights`."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(SHA)
    snapshot = folder / "snapshots" / SHA
    config.architectures = [name_class(config)]
    config.save_pretrained(snapshot)
    processor.save_pretrained(snapshot)
    write_weights(snapshot / "model.safetensors", config)


def name_class(config: Any) -> str:
    """The class of a model, as its published config.json names it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return str(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type])


def write_weights(file: Path, config: Any) -> None:
    """Write weights of a whole model in bfloat16 that take no room: a header, and a hole for all of its zeros."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    model.tie_weights()
    header: dict[str, Any] = {}
    end = 0
    for name, parameter in model.named_parameters():
        begin, end = end, end + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [begin, end]}
    written = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(written)) + written)
        opened.truncate(8 + len(written) + end)


def put_data(home: Path, name: str, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A data set, its `image` column of picture bytes, prepared as a first `load_dataset` does."""
    from datasets import Dataset, Features, Image, Value
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.parquet.parquet import Parquet

    files = {}
    for split, rows in splits.items():
        features = Features({key: Image() if key == "image" else Value(_kind(rows[0][key])) for key in rows[0]})
        files[split] = str(home / "parquet" / name / f"{split}.parquet")
        Path(files[split]).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list([dict(row) for row in rows], features=features).to_parquet(files[split])
    user, _, short = name.partition("/")
    builder = Parquet(cache_dir=str(home / "prepared"), dataset_name=short, config_name="default", data_files=files)
    folder = f"{user}___{camelcase_to_snakecase(short)}"
    builder.download_and_prepare(output_dir=str(home / "datasets" / folder / "default" / "0.0.0" / SHA))


def _kind(value: object) -> str:
    return "int64" if isinstance(value, int) else "string"
