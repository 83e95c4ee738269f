"""Random models with everything a real one has, for tests that hold two sides of the system against each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.models.families import engine_name
from common.models.prompts import TEMPLATES
from learner.embedded.tokenizer import CHAT_TEMPLATE, build_processor, token_ids

Architecture = Literal[
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "idefics3",
    "smolvlm",
    "llava_onevision",
    "mistral3",
    "gemma3",
    "aria",
    "llava",  # in no table: what is generic must do for it
]
LABELS = ("one", "two", "three")
QUESTION = "one or two?"


class Parts(NamedTuple):
    """What a family's builder makes, apart from the weights."""

    config: Any
    processor: Any


def build_random_model(folder: Path, *, seed: int, architecture: Architecture = "qwen2_vl") -> Path:
    """Save a model of some 0.15 M parameters with processor, chat template and generation config; returns `folder`.

    The Qwens take images of any size, one visual token for every 28 x 28 pixels (32 x 32 in Qwen3). All parameters are
    random, biases and norms too, so that nothing hides behind a zero or a one; the same seed gives the same model.
    """
    import torch
    import transformers

    texts = [
        f"<|im_start|>user\n<|vision_end|>{TEMPLATES[mode].format(problem=QUESTION)}<|im_end|>"
        for mode in ("no_think", "think")
    ]
    config, processor = _BUILDERS[architecture](build_processor([*texts, *LABELS], size_limit=512))
    tokenizer = processor.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: Any = transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = transformers.GenerationConfig(**ends)
    model.save_pretrained(folder)
    _rename(folder / "model.safetensors", config)
    processor.save_pretrained(folder)
    return folder


def build_reward_model(folder: Path, *, as_pickles: bool = False) -> Path:
    """Save a random reward model, its weights as safetensors or in torch's format. Return the folder."""
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    tokenizer = build_processor(["a"], size_limit=300).tokenizer
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config.from_dict({"vocab_size": len(tokenizer), "intermediate_size": 8, "num_labels": 1, **sizes})
    model: Any = Qwen2ForSequenceClassification(config)
    tokenizer.save_pretrained(folder)
    if as_pickles:
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
    return folder


def _rename(file: Path, config: Any) -> None:
    """A checkpoint as the hub has it: transformers saves a fresh SigLIP tower under names vLLM does not know."""
    from safetensors.torch import load_file, save_file

    tensors = {engine_name(name, config): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


# -- Qwen ------------------------------------------------------------------------------------------------------------


def _qwen2_vl(processor: Any) -> Parts:
    import transformers

    config = transformers.Qwen2VLConfig(
        text_config=_text(processor.tokenizer, **_MROPE),
        vision_config={"depth": 2, "num_heads": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        **_shared(processor.tokenizer),
    )
    return Parts(config, processor)


def _qwen2_5_vl(processor: Any) -> Parts:
    import transformers

    vision = {  # windows of 2 x 2 merged patches, so that an image of 84 pixels already has several
        "depth": 2,
        "num_heads": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text(processor.tokenizer, **_MROPE), vision_config=vision, **_shared(processor.tokenizer)
    )
    return Parts(config, _as(transformers.Qwen2_5_VLProcessor, processor))


def _qwen3_vl(processor: Any) -> Parts:
    import transformers

    vision = {
        "depth": 2,
        "num_heads": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = _text(processor.tokenizer, head_dim=32, **_MROPE)
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **_shared(processor.tokenizer))
    sizes = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    parts = {
        "image_processor": transformers.Qwen2VLImageProcessor(**sizes),
        "video_processor": transformers.Qwen3VLVideoProcessor(**sizes),
    }
    return Parts(config, _as(transformers.Qwen3VLProcessor, processor, **parts))


# -- the others ------------------------------------------------------------------------------------------------------


def _internvl(processor: Any) -> Parts:
    import transformers

    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(processor, **names)
    config = transformers.InternVLConfig(
        vision_config={**_TOWER, "image_size": [56, 56], "patch_size": [14, 14], "num_channels": 3},
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        **_ALL,
    )
    made = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(
            size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size={"height": 56, "width": 56}),
        image_seq_length=4,
        chat_template=_chat("<IMG_CONTEXT>"),
    )
    return Parts(config, made)


def _idefics3(processor: Any) -> Parts:
    import transformers

    tokenizer, text = _idefics_parts(processor)
    config = transformers.Idefics3Config(text_config=text, **_idefics_config(tokenizer))
    made = transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessor(**_TILES),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=_chat("<image>"),
    )
    return Parts(config, made)


def _smolvlm(processor: Any) -> Parts:
    import transformers

    tokenizer, text = _idefics_parts(processor)
    config = transformers.SmolVLMConfig(text_config=text, **_idefics_config(tokenizer))
    made = transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(**_TILES),
        tokenizer=tokenizer,
        video_processor=transformers.SmolVLMVideoProcessor(size={"longest_edge": 64}),
        image_seq_len=4,
        chat_template=_chat("<image>"),
    )
    return Parts(config, made)


def _idefics_parts(processor: Any) -> tuple[Any, dict[str, Any]]:
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    own = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *cells]
    tokenizer = _tokenizer(processor, **{f"tile_token_{index}": name for index, name in enumerate(own)})
    return tokenizer, {"model_type": "llama", **_text(tokenizer)}


def _idefics_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vision_config": {**_TOWER, "image_size": 64, "patch_size": 16},
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
        "scale_factor": 2,
        **_ALL,
    }


def _llava_onevision(processor: Any) -> Parts:
    import transformers

    tokenizer = _tokenizer(processor, image_token="<image>", video_token="<video>")
    grids = [[56, 56], [56, 112], [112, 56], [112, 112]]
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **_TOWER, "image_size": 56, "patch_size": 14},
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
        **_ALL,
    )
    size = {"height": 56, "width": 56}
    made = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grids),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_chat("<image>"),
    )
    return Parts(config, made)


def _mistral3(processor: Any) -> Parts:
    import transformers

    tokenizer = _tokenizer(processor, image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    config = transformers.Mistral3Config(
        vision_config={"model_type": "pixtral", **_TOWER, "head_dim": 16, "image_size": 112, "patch_size": 14},
        text_config={"model_type": "mistral", "head_dim": 32, "sliding_window": None, **_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        **_ALL,
    )
    made = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(size={"longest_edge": 112}, patch_size=28),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=_chat("[IMG]"),
    )
    return Parts(config, made)


def _gemma3(processor: Any) -> Parts:
    import transformers

    tokenizer = _tokenizer(
        processor, boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])  # vLLM looks them up as they are
    text = {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        **_text(tokenizer),
    }
    del text["rope_parameters"]
    config = transformers.Gemma3Config(
        text_config={"model_type": "gemma3_text", **text},
        vision_config={"model_type": "siglip_vision_model", **_TOWER, "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        **_ALL,
    )
    made = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=_chat("<start_of_image>"),
    )
    return Parts(config, made)


def _aria(processor: Any) -> Parts:
    """Its processor insists on 980 x 980 pixels."""
    import transformers

    tokenizer = _tokenizer(processor, image_token="<image>")
    text = _text(tokenizer) | {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1, "head_dim": 32}
    text["tie_word_embeddings"] = False
    config = transformers.AriaConfig(
        text_config=transformers.AriaTextConfig(**text),
        vision_config={"model_type": "idefics3_vision", **_TOWER, "image_size": 980, "patch_size": 140},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projector_patch_to_query_dict={49: 4},
        tie_word_embeddings=False,
        dtype="float32",
    )
    made = transformers.AriaProcessor(
        image_processor=transformers.AriaImageProcessor(),
        tokenizer=tokenizer,
        size_conversion={980: 4},
        chat_template=_chat("<image>"),
    )
    return Parts(config, made)


def _llava(processor: Any) -> Parts:
    import transformers

    tokenizer = _tokenizer(processor, image_token="<image>")
    config = transformers.LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", **_TOWER, "image_size": 56, "patch_size": 14},
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **_ALL,
    )
    made = transformers.LlavaProcessor(
        image_processor=transformers.SiglipImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=_chat("<image>"),
    )
    return Parts(config, made)


# -- what they share -------------------------------------------------------------------------------------------------

_ALL: dict[str, Any] = {"tie_word_embeddings": True, "dtype": "float32"}
_MROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TILES: dict[str, Any] = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 768,  # so that one of a layer's weights is large enough for the engine to pack it
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # of 32: vLLM has no CPU attention for 16
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": True,  # vLLM asks it of the text
        **more,
    }


def _shared(tokenizer: Any) -> dict[str, Any]:
    return {**_ALL, **token_ids(tokenizer)}


def _tokenizer(processor: Any, **own: str) -> Any:
    """The same tokenizer with special tokens of a family's own, each an attribute too."""
    from transformers import PreTrainedTokenizerFast

    before = processor.tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=before.backend_tokenizer,
        eos_token=before.eos_token,
        pad_token=before.pad_token,
        extra_special_tokens=own,
    )


def _chat(picture: str) -> str:
    return CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", picture)


def _as(kind: Any, processor: Any, **other: Any) -> Any:
    """Every family's checkpoints name a processor class of their own."""
    names = ("image_processor", "tokenizer", "video_processor", "chat_template")
    return kind(**{name: getattr(processor, name) for name in names} | other)


_BUILDERS: dict[Architecture, Callable[[Any], Parts]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "llava_onevision": _llava_onevision,
    "mistral3": _mistral3,
    "gemma3": _gemma3,
    "aria": _aria,
    "llava": _llava,
}
