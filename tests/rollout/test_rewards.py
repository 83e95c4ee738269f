"""Each reward on right, wrong, malformed, empty and hostile completions, and the way from a name to a function."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from common.answers import Mode
from common.config import RewardConfig
from common.errors import ConfigError, ModelError
from rollout.rewards import REWARDS
from rollout.rewards.loading import check_functions, load_function

HERE = "tests.rollout.hostile_rewards"


def reward(name: str, completion: str, mode: Mode) -> float:
    columns = {"prompt_id": "train/0", "problem": "What is it?", "mode": mode, "image_width": 8}
    (value,) = REWARDS[name]((completion,), label="cat", **columns)
    return value


@pytest.mark.parametrize(
    ("completion", "mode", "accuracy", "form"),
    [
        ("cat", "no_think", 1, 1),
        ("dog", "no_think", 0, 1),
        ("", "no_think", 0, 0),
        (" \t", "no_think", 0, 0),
        ("cat\n", "no_think", 0, 0),
        ("cat\ndog", "no_think", 0, 0),
        ("cat\u2028dog", "no_think", 0, 0),
        ("<answer>cat</answer>", "no_think", 0, 0),
        ("</think>cat", "no_think", 0, 0),
        ("cat, dog, tiger", "no_think", 0, 1),
        ("<think>t</think><answer>cat</answer>", "think", 1, 1),
        ("<think>t\nu</think>\n\n<answer>\nCAT\n</answer>", "think", 1, 1),
        ("<think>t</think><answer>dog</answer>", "think", 0, 1),
        ("cat", "think", 0, 0),
        ("", "think", 0, 0),
        ("<think></think><answer>cat</answer>", "think", 1, 0),
        ("<think>t</think><answer> </answer>", "think", 0, 0),
        ("<answer>cat</answer><think>t</think>", "think", 0, 0),
        ("<think>t</think><answer>cat</answer>.", "think", 0, 0),
        ("so <think>t</think><answer>cat</answer>", "think", 1, 0),
        ("<think>t</think> so <answer>cat</answer>", "think", 1, 0),
        ("<think>t</think><answer>cat</answer><answer>dog</answer>", "think", 0, 0),
        ("<think>t</think><think>u</think><answer>cat</answer>", "think", 1, 0),
        ("<think><answer>dog</answer></think><answer>cat</answer>", "think", 0, 0),
        ("<think>t</think><answer><answer>cat</answer>", "think", 0, 0),
        ("<think>t<answer>cat</answer>", "think", 1, 0),
        ("<think>t</think><answer>cat, dog, tiger</answer>", "think", 0, 1),
        ("<answer>" * 5000, "think", 0, 0),
        ("<think>t</think>" + " " * 50000, "think", 0, 0),
    ],
)
def test_accuracy_and_format(completion: str, mode: Mode, accuracy: float, form: float) -> None:
    assert (reward("accuracy", completion, mode), reward("format", completion, mode)) == (accuracy, form)


def test_functions_are_found_by_name_and_by_dotted_path() -> None:
    check_functions(RewardConfig(functions={"accuracy": 1.0, "format": 0.5, f"{HERE}:length": 0.1}))
    assert load_function("format") is REWARDS["format"]
    assert load_function(f"{HERE}:length")(("ab", "c"), label="cat") == [2.0, 1.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acuracy", ["acuracy", "perhaps you meant accuracy"]),
        ("zzz", ["accuracy, format, package.module:function"]),
        ("no_such_package.rewards:f", ["cannot import no_such_package.rewards", "ModuleNotFoundError"]),
        (f"{HERE}:lenght", ["has no lenght", "perhaps you meant length"]),
        (f"{HERE}:NOT_CALLABLE", ["not callable", "int"]),
        (f"{HERE}:no_columns", ["every other column", "some_other_column"]),
        (":", ["cannot import"]),
    ],
)
def test_names_that_lead_nowhere_are_refused_at_the_door(name: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_functions(RewardConfig(functions={name: 1.0}))
    for word in words:
        assert word in str(refusal.value)


def make_reward_model(folder: Path, *, num_labels: int = 1, head: bool = True, chat: bool = False) -> str:
    """A sequence-classification BERT of a few hundred weights, with a word tokenizer, in Hugging Face layout."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers: Any = importlib.import_module("transformers")  # its classes are only half typed
    words = ["[PAD]", "[UNK]", "[CLS]", "cat", "dog", "what", "user", "assistant"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )
    if chat:
        fast.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    fast.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        num_labels=num_labels,
    )
    torch.manual_seed(0)
    (transformers.BertForSequenceClassification(config) if head else transformers.BertModel(config)).save_pretrained(
        folder
    )
    return f"model:{folder}"


@pytest.mark.parametrize("chat", [False, True])
def test_a_reward_model_scores_each_completion_as_if_alone(tmp_path: Path, chat: bool) -> None:
    name = make_reward_model(tmp_path, chat=chat)
    check_functions(RewardConfig(functions={name: 1.0}))
    model = load_function(name)
    columns = {"prompt_id": "train/0", "problem": "what", "mode": "no_think"}
    together = model(("cat", "dog dog dog", ""), label="cat", **columns)
    alone = [model((text,), label="cat", **columns)[0] for text in ("cat", "dog dog dog", "")]
    assert together == pytest.approx(alone, abs=1e-6)
    assert len(set(together)) == 3


def test_a_reward_model_must_have_one_output(tmp_path: Path) -> None:
    name = make_reward_model(tmp_path, num_labels=2)
    with pytest.raises(ModelError, match="num_labels = 2"):
        check_functions(RewardConfig(functions={name: 1.0}))


def test_a_reward_model_needs_its_trained_head(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"classifier\.weight"):
        load_function(make_reward_model(tmp_path, head=False))


def test_an_unreadable_reward_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        check_functions(RewardConfig(functions={f"model:{tmp_path}": 1.0}))


def test_a_reward_model_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.rewards.model.unreachable", lambda: "no route to the hub")
    with pytest.raises(ModelError, match="no route to the hub"):
        check_functions(RewardConfig(functions={"model:someone/some-reward": 1.0}))
