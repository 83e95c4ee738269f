"""Random models with everything a real one has, for tests that hold two sides of the system against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from common.prompts import TEMPLATES
from learner.vocabulary import build_processor, token_ids

Architecture = Literal["qwen2_vl", "qwen2_5_vl"]
LABELS = ("one", "two", "three")
QUESTION = "one or two?"


def build_random_model(folder: Path, *, seed: int, architecture: Architecture = "qwen2_vl") -> Path:
    """Save a model of some 0.15 M parameters with processor, chat template and generation config; returns `folder`.

    It takes images of any size, one visual token for every 28 x 28 pixels. All parameters are random, biases and norms
    too, so that nothing hides behind a zero or a one; the same seed gives the same model.
    """
    import torch
    import transformers

    texts = [
        f"<|im_start|>user\n<|vision_end|>{TEMPLATES[mode].format(problem=QUESTION)}<|im_end|>" for mode in TEMPLATES
    ]
    processor = build_processor([*texts, *LABELS], size_limit=512)
    tokenizer = processor.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**_TEXT, **ends, "vocab_size": len(tokenizer), "bos_token_id": None}
    shared: dict[str, Any] = {
        "text_config": text,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **token_ids(tokenizer),
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        config: Any
        if architecture == "qwen2_vl":
            config = transformers.Qwen2VLConfig(vision_config={**_VISION, **_VISION_2}, **shared)
        else:
            config = transformers.Qwen2_5_VLConfig(vision_config={**_VISION, **_VISION_2_5}, **shared)
        model: Any = transformers.AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = transformers.GenerationConfig(**ends)
    model.save_pretrained(folder)
    _own(processor, architecture).save_pretrained(folder)
    return folder


def _own(processor: Any, architecture: Architecture) -> Any:
    """Either family's checkpoints name a processor class of their own."""
    from transformers import Qwen2_5_VLProcessor

    if architecture == "qwen2_vl":
        return processor
    parts = {
        name: getattr(processor, name) for name in ("image_processor", "tokenizer", "video_processor", "chat_template")
    }
    return Qwen2_5_VLProcessor(**parts)


_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 32: vLLM has no CPU attention for 16
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}
_VISION: dict[str, Any] = {"depth": 2, "num_heads": 2}
_VISION_2: dict[str, Any] = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
_VISION_2_5: dict[str, Any] = {  # windows of 2 x 2 merged patches, so that an image of 84 pixels already has several
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 64,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}
