"""Reward by a sequence-classification model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import ModelError
from common.models.chat import ChatRenderer
from common.models.hub import require_hub
from common.models.own_code import explain_failure


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
            raise ModelError(
                f"reward model {path} has no trained score head",
                got=f"no weights for {', '.join(sorted(report['missing_keys']))}",
                remedy="give a model trained for sequence classification",
            )
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
    """Read all of the model but its weights, and return its tokenizer.

    Raises ModelError if it cannot be read, has not exactly one output, or its chat template fails.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not Path(path).is_dir():
        require_hub(f"reward model {path}", error=ModelError)
    try:
        outputs = AutoConfig.from_pretrained(path, trust_remote_code=False).num_labels
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the files are not ours
        raise _unreadable(path, error) from error
    if outputs != 1:
        raise ModelError(
            f"reward model {path} must have exactly one output",
            got=f"num_labels = {outputs}",
            remedy="give a sequence-classification model trained with num_labels = 1",
        )
    tokenizer.apply_chat_template = ChatRenderer(tokenizer.apply_chat_template, path=path, revision=None)
    _text(tokenizer, "?", "!")
    return tokenizer


def _unreadable(path: str, error: Exception) -> ModelError:
    return ModelError(
        f"reward model {path} cannot be read",
        got=explain_failure(path, None, error),
        remedy="give the id or folder of a sequence-classification model with its tokenizer",
    )
