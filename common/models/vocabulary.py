"""Hold a model's tokenizer against its configuration: words at all, and no id that the model has no row for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from common.errors import ModelError


def check_vocabulary(path: str, config: Any, processor: Any, ends: Collection[object]) -> None:
    """Refuse a tokenizer that is empty, or that cannot be this model's.

    A tokenizer longer than the embedding passes: `PromptEncoder` refuses texts that need its last tokens. A shorter one
    is usual, since embeddings are padded.

    Args:
        path: of the model, for the error.
        ends: what the generation config says of ids that end an answer.

    Raises:
        ModelError: saying which id does not fit.
    """
    tokenizer, rows = processor.tokenizer, config.get_text_config().vocab_size
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"the tokenizer of {path} has no words",
            got=f"a vocabulary of {len(tokenizer)} tokens, in which the letter a has none",
            remedy="give a complete model folder: tokenizer.json, or vocab.json with merges.txt, is missing or empty",
        )
    if strange := [end for end in ends if type(end) is not int or not 0 <= end < rows]:
        raise ModelError(
            f"the generation config of {path} ends answers with a token that the model does not have",
            got=f"eos_token_id {strange[0]!r}, where the model has ids 0 to {rows - 1}",
            remedy="correct eos_token_id in generation_config.json",
        )
    pictures = {getattr(config, f"{name}_token_id", None) for name in ("image", "video")}
    if inside := [end for end in ends if end in pictures]:
        raise ModelError(
            f"the generation config of {path} ends answers with a token that stands for pictures",
            got=f"eos_token_id {inside[0]}, {tokenizer.convert_ids_to_tokens(inside[0])!r}",
            remedy="correct eos_token_id in generation_config.json",
        )
    if not ends and tokenizer.eos_token_id is None:
        raise ModelError(
            f"nothing ends an answer of {path}",
            got="no eos_token_id in generation_config.json or config.json, and no EOS in its tokenizer",
            remedy="name the token that ends a turn as eos_token_id in generation_config.json",
        )


def find_beyond(config: Any, tokenizer: Any) -> list[str]:
    """Return the tokens of a tokenizer that the model has no row for, by id; usually none."""
    rows = config.get_text_config().vocab_size
    beyond = sorted((token, word) for word, token in tokenizer.get_vocab().items() if token >= rows)
    return [word for _, word in beyond]
