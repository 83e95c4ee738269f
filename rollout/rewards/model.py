"""Reward by a sequence-classification model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.schema import ModelConfig
from common.errors import ModelError
from common.models.chat import ChatRenderer
from common.models.hub import require_hub
from common.models.own_code import explain_failure
from common.models.weight_files import check_folder, read_tensors
from common.models.weights import find_differences, find_folder


class RewardModel:
    """Scores question and answer, on a CPU, with the one output of a Hugging Face model.

    A tokenizer with a chat template reads them as a user and an assistant turn, any other as two lines. Raises
    ModelError for a model that cannot be read, has not exactly one output, or has no trained head.
    """

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForSequenceClassification

        self.tokenizer = check_reward_model(path)
        try:
            self.model, report = AutoModelForSequenceClassification.from_pretrained(
                path, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # the files are not ours, and the Rust tokenizer raises bare Exception
            raise _unreadable(path, error) from error
        if report["missing_keys"]:  # transformers would make it of random numbers
            raise _untrained(path, f"no weights for {', '.join(sorted(report['missing_keys']))}")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.eval()

    def __call__(self, completions: Sequence[str], *, problem: str, **columns: Any) -> Sequence[float]:
        """Return (G,) one score for each completion."""
        import torch

        texts = [_text(self.tokenizer, problem, completion) for completion in completions]
        batch = self.tokenizer(
            texts, padding=True, return_tensors="pt", add_special_tokens=self.tokenizer.chat_template is None
        )
        with torch.inference_mode():
            scores: list[float] = self.model(**batch).logits[:, 0].float().tolist()  # logits are (G, 1)
        return scores


def _text(tokenizer: Any, problem: str, completion: str) -> str:
    """Return question and answer as the model reads them. Raises ModelError when the chat template fails."""
    if tokenizer.chat_template is None:
        return f"{problem}\n{completion}"
    turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": completion}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def check_reward_model(path: str) -> Any:
    """Read all of the model but the values of its weights, and return its tokenizer.

    Raises ModelError if it cannot be read, has not exactly one output, some of its weights are not there, its
    tokenizer is not its own, or its chat template fails.
    """
    from transformers import AutoConfig, AutoTokenizer

    if Path(path).is_dir():
        check_folder(Path(path))
    else:
        require_hub(f"reward model {path}", error=ModelError)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the files are not ours
        raise _unreadable(path, error) from error
    if config.num_labels != 1:
        raise ModelError(
            f"reward model {path} must have exactly one output",
            got=f"num_labels = {config.num_labels}",
            remedy="give a sequence-classification model trained with num_labels = 1",
        )
    _check_reward_weights(path, config)
    _check_reward_tokens(path, config, tokenizer)
    tokenizer.apply_chat_template = ChatRenderer(tokenizer.apply_chat_template, path=path, revision=None)
    _text(tokenizer, "?", "!")
    return tokenizer


def _check_reward_weights(path: str, config: Any) -> None:
    """Refuse weights that lack a tensor, the score head among them, where this host has them. Raises ModelError."""
    from transformers import AutoModelForSequenceClassification

    folder = find_folder(path, None)
    if folder is None:
        return
    tensors = read_tensors(folder)
    try:
        found = find_differences(AutoModelForSequenceClassification, config, tensors, ModelConfig(path=path))
    except Exception as error:  # the files are not ours
        raise _unreadable(path, error) from error
    if found:
        raise _untrained(path, str(found))


def _check_reward_tokens(path: str, config: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer without words, or with ids that the model has no rows for: any text may be scored."""
    ids, rows = tokenizer.get_vocab().values(), config.get_text_config().vocab_size
    if not tokenizer("a", add_special_tokens=False)["input_ids"] or max(ids) >= rows:
        raise ModelError(
            f"reward model {path} has another model's tokenizer, or none",
            got=f"{len(ids)} tokens of ids up to {max(ids, default=0)}, and {rows} rows of embeddings",
            remedy="give the model with its own tokenizer files",
        )


def _untrained(path: str, got: str) -> ModelError:
    return ModelError(
        f"reward model {path} has no trained score head, or only some of its weights",
        got=got,
        remedy="give a model trained for sequence classification, with all of its files",
    )


def _unreadable(path: str, error: Exception) -> ModelError:
    return ModelError(
        f"reward model {path} cannot be read",
        got=explain_failure(path, None, error),
        remedy="give the id or folder of a sequence-classification model with its tokenizer",
    )
