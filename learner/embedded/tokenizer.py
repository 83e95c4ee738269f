"""Tokenizer and processor of a tiny Qwen2-VL, trained on the text of its task.

Merges run across words and punctuation, so text that every prompt of the task shares becomes one token. Any other text
still has tokens, down to single bytes. Short prompts make a tiny model quick to sample from and to train.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2VLProcessor

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, VISION_START, VISION_END, "<|vision_pad|>", IMAGE, VIDEO)

# As Qwen2-VL's own does for text and pictures: a system turn unless one is given, then a block a turn.
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def build_processor(texts: Iterable[str], *, size_limit: int) -> Qwen2VLProcessor:
    """Build a processor of 14-pixel patches, merged 2 x 2, and train its tokenizer on `texts`.

    Args:
        texts: chats as `CHAT_TEMPLATE` renders them, and answers. Text between two special tokens becomes one token,
            if `size_limit` allows.
        size_limit: most tokens of the vocabulary; at least 256 bytes and the special tokens.
    """
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=_train_tokenizer(texts, size_limit),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def _train_tokenizer(texts: Iterable[str], size_limit: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE without the usual split into words (`use_regex=False`)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size_limit,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_between_special_tokens(texts), trainer)
    made = {"tokenizer_object": tokenizer, "eos_token": TURN_END, "pad_token": PAD}
    return PreTrainedTokenizerFast(**made)


def _between_special_tokens(texts: Iterable[str]) -> list[str]:
    """Cut texts at special tokens, as encoding does before it merges: the trainer must not merge across them."""
    marks = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    return [piece for text in texts for piece in marks.split(text) if piece]


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the token ids that a Qwen2-VL configuration names, by its keys."""
    names = {"image": IMAGE, "video": VIDEO, "vision_start": VISION_START, "vision_end": VISION_END}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
