"""Candidates as the ids an engine would sample: each reads back as its answer and ends as the mode does."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.labels.answers import Mode, is_right
from common.labels.closed_set import ClosedSet, end_of_turn
from common.types import Example, Prompt

LABELS = ("cat", "catfish", "tiger shark", "BAE 146-200", "naïve", "虎")
EXAMPLE = Example(id="train/0", problem="?", image=None, label="cat", columns={})
PROMPT = Prompt(example=EXAMPLE, text_ids=(1, 2), token_ids=(1, 2, 2, 2), images=None)


@cache
def processor() -> Any:
    from learner.embedded.tokenizer import build_processor

    texts = ["<think>so it is a cat.</think>\n<answer>cat</answer>", "a cat.</think>", *LABELS]
    return build_processor(texts, size_limit=400)


def closed_set(mode: Mode, **changes: Any) -> ClosedSet:
    ends = [processor().tokenizer.eos_token_id]
    return ClosedSet(processor(), **{"mode": mode, "ends": ends, "banned": ()} | changes)


def text(ids: tuple[int, ...]) -> str:
    said: str = processor().tokenizer.decode(list(ids), skip_special_tokens=True)
    return said


def ids(words: str) -> tuple[int, ...]:
    return tuple(processor().tokenizer(words)["input_ids"])


@pytest.mark.parametrize("mode", get_args(Mode))
def test_an_answer_reads_back_as_right_and_ends_as_its_mode_does(mode: Mode) -> None:
    answers = closed_set(mode).answers(LABELS)
    begun = "<think>hm" if mode == "think" else ""
    for label, answer in zip(LABELS, answers, strict=True):
        assert is_right(begun + text(answer), label, mode=mode)
        ended = answer[-1] == processor().tokenizer.eos_token_id
        assert ended == (mode != "think_after_answer")
    assert answers == closed_set(mode).answers(LABELS)


def test_the_turn_ends_with_what_the_chat_template_ends_it_with() -> None:
    tokenizer = processor().tokenizer
    assert end_of_turn(processor(), range(len(tokenizer))) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn(processor(), ()) == tokenizer.eos_token_id


@given(thought=st.text(max_size=20), ending=st.sampled_from([".</think>\n<answer>dog</answer>", "<answer>dog", ""]))
@settings(max_examples=100, deadline=None)
def test_a_thought_is_kept_token_by_token_and_its_answer_goes_on_from_it(thought: str, ending: str) -> None:
    """Whatever token reaches over the thought's end: prompt and answer together say thought, then answer."""
    sampled = (*ids(f"<think>{thought}{ending}"), processor().tokenizer.eos_token_id)
    longer, opening = closed_set("think").after_thought(PROMPT, sampled)
    kept = longer.token_ids[len(PROMPT.token_ids) :]
    assert longer.token_ids[: len(PROMPT.token_ids)] == PROMPT.token_ids
    assert longer.text_ids == PROMPT.text_ids + kept
    assert kept == sampled[: len(kept)]
    said = text(sampled)
    for mark in ("</think>", "<answer>"):
        said = said.partition(mark)[0]
    (answer,) = closed_set("think").answers(["cat"], opening=opening)
    assert text(kept) + text(answer) == said + "</think>\n<answer>cat</answer>"


@pytest.mark.parametrize(
    ("mode", "completion", "begins"),
    [
        ("no_think", "cat", ""),
        ("think_after_answer", "<answer>cat</answer><reason>ears</reason>", "<answer>"),
        ("adaptive", "<answer>cat</answer>", "<answer>"),
        ("adaptive", "cat", "<answer>"),
        ("adaptive", "<think>ears</think> <answer>cat</answer>", "</think>\n<answer>"),
    ],
)
def test_where_nothing_was_thought_the_prompt_is_as_it_was(mode: Mode, completion: str, begins: str) -> None:
    longer, opening = closed_set(mode).after_thought(PROMPT, ids(completion))
    assert (longer == PROMPT) == ("think>" not in begins)
    assert opening.endswith(begins)


@pytest.mark.parametrize(
    ("candidates", "got"),
    [
        (["cat", "cat"], "'cat' and 'cat'"),
        (["cat", "<|im_end|>"], "its tokens read ''"),
        (["cat", " "], "its tokens read ' '"),
    ],
)
def test_what_cannot_be_an_answer_is_refused_by_name(candidates: list[str], got: str) -> None:
    with pytest.raises(DataError) as refused:
        closed_set("no_think").answers(candidates)
    assert got in str(refused.value)


def test_banned_tokens_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="banned tokens"):
        closed_set("no_think", banned=ids("cat")).answers(["cat"])
