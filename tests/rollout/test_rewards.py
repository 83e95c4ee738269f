"""Each reward on right, wrong, malformed, empty and hostile completions, and the way from a name to a function."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.schema import Config, DataConfig, RewardConfig
from common.data.content.columns import COMPLETIONS
from common.data.sources import ExampleSource, Outline
from common.data.table import Table, Unreadable
from common.errors import ConfigError, DataError, ModelError, RollcallError
from common.labels.answers import Mode
from common.labels.candidates import with_candidates
from common.labels.taxonomy import leaves, similarity
from common.types import CandidateProbabilities
from rollout.reward_actor import RewardActor, RewardTask
from rollout.reward_pool import list_constants
from rollout.rewards import REWARDS
from rollout.rewards.loading import GIVEN_OF_CONFIG, GIVEN_OF_TASK, check_functions, find_signature, load_function
from rollout.rewards.preflight import check_columns, check_rewards

HERE = "tests.helpers.hostile_rewards"
unhurried = settings(deadline=None)  # the cores are shared


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


@pytest.mark.parametrize(("tokens", "expected"), [(4, 1), (3, 0.75), (5, 0.75), (1, 0.25), (8, 0), (9, 0), (5000, 0)])
def test_length(tokens: int, expected: float) -> None:
    """Whatever is said: right, wrong or malformed."""
    assert REWARDS["length"](("cat",), label="cat", token_ids=[(7,) * tokens], length_target=4) == [expected]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((1,), 0),
        ((1, 1), 0),
        ((1, 2, 3, 4, 5, 6), 0),
        ((1, 2, 3, 1, 2, 3), -1 / 4),
        ((1, 2, 1, 2, 1, 2), -2 / 4),
        ((1,) * 1002, -999 / 1000),
    ],
)
def test_repetition(ids: tuple[int, ...], expected: float) -> None:
    (found,) = REWARDS["repetition"](("cat",), label="cat", token_ids=[ids], repetition_ngram=3)
    assert found == pytest.approx(expected)


@unhurried
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_repetition_is_zero_iff_no_ngram_recurs(ids: list[int], n: int) -> None:
    (found,) = REWARDS["repetition"](("",), label="cat", token_ids=[ids], repetition_ngram=n)
    ngrams = [ids[start : start + n] for start in range(len(ids) - n + 1)]
    assert -1 < found <= 0 and (found == 0) == all(ngrams.count(one) == 1 for one in ngrams)


TREE = {"cat": "feline", "tiger": "feline", "feline": "mammal", "dog": "mammal", "mammal": "animal", "oak": "plant"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("cat", 1),
        ("CAT", 1),
        ("puss", 1),  # an alias
        ("tiger", 2 * 3 / 8),
        ("dog", 2 * 2 / 7),
        ("oak", 0),
        ("feline", 0),  # true, but no candidate
        ("wolf", 0),
        ("cat, tiger", 0),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_taxonomy(answer: str, expected: float, listed: bool) -> None:
    problem = with_candidates("What?", ["oak", "dog", "tiger", "cat"]) if listed else "What?"
    columns = {"label": "cat", "problem": problem, "mode": "think", "taxonomy": TREE, "aliases": {"cat": ["puss"]}}
    completions = (f"<think>t</think><answer>{answer}</answer>", answer, "", "<answer>" * 1000)
    assert REWARDS["taxonomy"](completions, **columns) == pytest.approx([expected, 0, 0, 0])


@unhurried
@given(st.sampled_from(leaves(TREE)), st.sampled_from(leaves(TREE)))
def test_near_is_mutual_and_only_one_is_nearest(one: str, other: str) -> None:
    near = similarity(TREE, one, other)
    assert near == similarity(TREE, other, one) and 0 <= near <= 1 and (near == 1) == (one == other)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a cat</think><answer>cat</answer>", 1),
        ("<think>a dog</think><answer>dog</answer>", 1),  # wrong, but it follows
        ("<think>a dog</think><answer>cat</answer>", 0),
        ("<think>a dog or a cat</think><answer>cat</answer>", 0.5),
        ("<think>a cat</think>cat", 0),
        ("", 0),
        ("<think>" * 1000, 0),
    ],
)
def test_consistency(completion: str, expected: float) -> None:
    problem = with_candidates("What?", ["cat", "dog"])
    assert REWARDS["consistency"]((completion,), label="cat", problem=problem, mode="think") == [expected]


@pytest.mark.parametrize(
    ("probabilities", "marginal", "confidence"),
    [
        ({"cat": 1.0, "dog": 0.0}, 1, 1),
        ({"cat": 0.0, "dog": 1.0}, 0, -1),
        ({"cat": 0.5, "dog": 0.5}, 0.5, 0.5),
        ({"cat": 0.5, "dog": 0.25, "ox": 0.25}, 0.5, 1 - 0.375),
    ],
)
@pytest.mark.parametrize("said", ["cat", "dog", "", "</think>" * 1000])
def test_probabilities_decide_whatever_is_said(
    probabilities: CandidateProbabilities, marginal: float, confidence: float, said: str
) -> None:
    assert REWARDS["marginal"]((said,), label="cat", candidate_probabilities=[probabilities]) == [marginal]
    assert REWARDS["confidence"]((said,), label="cat", candidate_probabilities=[probabilities]) == pytest.approx(
        [confidence]
    )


@unhurried
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_the_brier_score_is_proper(truth: list[float], told: list[float]) -> None:
    """No other probabilities earn more than those that are true."""

    def normalise(weights: list[float]) -> CandidateProbabilities:
        return {f"{k}": weight / sum(weights) for k, weight in enumerate(weights)}

    real, other = normalise(truth), normalise(told[: len(truth)])

    def gain(said: CandidateProbabilities) -> float:
        return sum(
            share * REWARDS["confidence"](("",), label=name, candidate_probabilities=[said])[0]
            for name, share in real.items()
        )

    assert gain(other) <= gain(real) + 1e-9


CLASSES = with_candidates("What?", ["cat", "dog"])


@pytest.mark.parametrize(
    ("functions", "changes", "problem", "words"),
    [
        ("length", {}, CLASSES, "reward.length_target = null"),
        ("taxonomy", {}, CLASSES, "label 'cat' is not in it"),
        ("taxonomy", {"taxonomy": {"cat": "animal"}}, CLASSES, "label 'dog' is not in it"),
        ("taxonomy", {"taxonomy": {"cat": "dog", "dog": "cat"}}, CLASSES, "'cat' is above itself"),
        ("taxonomy", {"taxonomy": {"cat": "cat", "dog": "cat"}}, CLASSES, "'cat' is above itself"),
        ("taxonomy", {"taxonomy": {"cat": "a", "dog": " "}}, CLASSES, "blank name"),
        ("marginal", {}, CLASSES, "data.mode = no_think"),
        ("confidence", {"mode": "think_after_answer"}, CLASSES, "data.mode = think_after_answer"),
        (f"{HERE}:highest_probability", {}, CLASSES, "data.mode = no_think"),
        ("marginal", {"mode": "think"}, "What is it?", "open-ended"),
        ("confidence", {"mode": "adaptive"}, with_candidates("What?", ["ox", "dog"]), "label 'cat' of"),
        ("marginal", {"mode": "think"}, with_candidates("What?", ["cat", "dog", "dog"]), "label 'cat' of"),
    ],
)
def test_what_a_function_lacks_is_refused_before_a_run(
    functions: str, changes: dict[str, Any], problem: str, words: str
) -> None:
    config = Config(reward=RewardConfig(functions={functions: 1.0}), data=DataConfig(**changes))
    row = Outline(id="train/7", problem=problem, label="cat", image_size=None)
    with pytest.raises(RollcallError, match=re.escape(words)):
        check_rewards(config, [row])


def test_what_nothing_is_missing_for_is_let_in() -> None:
    functions = dict.fromkeys(("length", "taxonomy", "marginal", "confidence", "consistency", "repetition"), 1.0)
    config = Config(
        reward=RewardConfig(functions=functions, length_target=6),
        data=DataConfig(mode="think", taxonomy={"cat": "animal", "dog": "animal"}),
    )
    check_rewards(config, [Outline(id="train/7", problem=CLASSES, label="cat", image_size=None)])


def columned(*names: str) -> ExampleSource:
    row = {"problem": CLASSES, "solution": "cat"} | dict.fromkeys(names, "x")
    table = Table(name="set (train)", split="train", columns=tuple(row), rows=[row], root=None)
    return ExampleSource(table, [0], DataConfig())


@pytest.mark.parametrize("function", ["accuracy", "model:somebody/reward"])
def test_a_column_called_like_the_first_argument_is_refused_before_a_run(function: str) -> None:
    config = Config(reward=RewardConfig(functions={function: 1.0}))
    with pytest.raises(DataError, match="completions") as caught:
        check_columns(config, columned("note", "completions"), say=print)
    assert "rename or drop" in caught.value.remedy
    check_columns(config, columned("note", "completion", "texts", "not a name"), say=print)


def test_a_column_that_a_function_lacks_is_named_before_a_run() -> None:
    config = Config(reward=RewardConfig(functions={f"{HERE}:needs_answer": 1.0}))
    with pytest.raises(DataError, match="answer"):
        check_columns(config, columned("note"), say=print)
    check_columns(config, columned("answer"), say=print)


def test_a_column_that_was_left_out_is_named_where_a_function_asks_for_it() -> None:
    config = Config(reward=RewardConfig(functions={f"{HERE}:needs_answer": 1.0}))
    row = {"problem": CLASSES, "solution": "cat", "answer": Unreadable(why="OverflowError: too long")}
    table = Table(name="set (train)", split="train", columns=tuple(row), rows=[row], root=None)
    with pytest.raises(DataError, match="answer is left out, for train/0: OverflowError"):
        check_columns(config, ExampleSource(table, [0], DataConfig()), say=print)


@pytest.mark.parametrize("name", REWARDS)
def test_lint_warns_of_the_column_that_no_function_can_be_called_with(name: str) -> None:
    with pytest.raises(TypeError, match=COMPLETIONS):
        find_signature(name).bind((), **{COMPLETIONS: "x"})


@pytest.mark.parametrize("name", sorted({*GIVEN_OF_TASK, *GIVEN_OF_CONFIG} - {"problem"}))
def test_a_column_that_no_function_sees_is_named(name: str) -> None:
    said: list[str] = []
    check_columns(Config(), columned(name), say=said.append)
    assert said == [f"note: reward functions get Rollcall's own {name}, not the column of that name"]


def test_the_names_of_what_is_given_are_those_of_task_and_pool() -> None:
    fields = {field.name for field in dataclasses.fields(RewardTask)}
    assert {*GIVEN_OF_TASK} == fields - {"columns", "completions"}
    assert tuple(list_constants(RewardConfig(), DataConfig())) == GIVEN_OF_CONFIG


def test_functions_are_found_by_name_and_by_dotted_path() -> None:
    check_functions(RewardConfig(functions={"accuracy": 1.0, "format": 0.5, f"{HERE}:length": 0.1}))
    assert load_function("format") is REWARDS["format"]
    assert load_function(f"{HERE}:length")(("ab", "c"), label="cat") == [2.0, 1.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acuracy", ["acuracy", "perhaps you meant accuracy"]),
        ("zzz", ["accuracy, format, length", "package.module:function"]),
        ("no_such_package.rewards:f", ["cannot import no_such_package.rewards", "ModuleNotFoundError"]),
        (f"{HERE}:lenght", ["has no lenght", "perhaps you meant length"]),
        (f"{HERE}:NOT_CALLABLE", ["not callable", "int"]),
        (f"{HERE}:no_columns", ["every other column", "some_other_column"]),
        (f"{HERE}:old_parameter", ["beliefs is now called candidate_probabilities", "a parameter beliefs"]),
        (f"{HERE}:promised", ["can give no list of numbers", "an async function"]),
        (f"{HERE}:yielded", ["can give no list of numbers", "a generator"]),
        (f"{HERE}:ASYNC_OBJECT", ["can give no list of numbers", "an async function"]),
        (f"{HERE}:AsyncObject", ["can give no list of numbers", "a class"]),
        (":", ["cannot import"]),
    ],
)
def test_names_that_lead_nowhere_are_refused_before_a_run(name: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_functions(RewardConfig(functions={name: 1.0}))
    for word in words:
        assert word in str(refusal.value)


def test_an_object_and_a_partial_function_are_rewards() -> None:
    for name in ("CALLABLE_OBJECT", "PARTIAL"):
        assert load_function(f"{HERE}:{name}")(("ab", "c"), label="cat") == [2.0, 1.0]


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "raise SystemExit('no licence')", "1 / 0", "def f(:"])
def test_a_module_that_ends_the_process_is_one_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ending_rewards.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot import ending_rewards"):
        load_function("ending_rewards:f")


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


def test_a_reward_model_is_read_where_this_host_has_it(tmp_path: Path) -> None:
    """Its name is a folder of the driver's host; this one has a copy elsewhere."""
    here = make_reward_model(tmp_path).removeprefix("model:")
    task = RewardTask(
        prompt_id="train/0",
        problem="what",
        label="cat",
        columns={},
        completions=("cat", "dog"),
        token_ids=((3,), (4,)),
        candidate_probabilities=None,
    )
    away = RewardActor(["model:/nowhere/judge"], {"mode": "no_think"}, 60.0, {"model:/nowhere/judge": here})
    (scores,) = away.score([task], ["model:/nowhere/judge"])
    assert isinstance(scores, dict)
    columns = {"prompt_id": "train/0", "problem": "what", "mode": "no_think"}
    assert list(scores["model:/nowhere/judge"]) == pytest.approx(
        load_function(f"model:{here}")(("cat", "dog"), label="cat", **columns)
    )


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
    monkeypatch.setattr("common.models.hub.find_hub_fault", lambda: "no route to the hub")
    with pytest.raises(ModelError, match="no route to the hub"):
        check_functions(RewardConfig(functions={"model:someone/some-reward": 1.0}))
