"""What a thought names, and whether that is what its completion answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.labels.answers import Mode
from common.labels.candidates import with_candidates
from common.labels.consistency import consistency

LISTED = with_candidates("What is it?", ["cat", "tiger", "tiger shark", "polka_dotted", "BAE 146-200", "7", "虎"])
CHOICE = "Where is the cat?\n(A) left\n(B) right"
BARE_CHOICE = "Where is the cat?\nA. on a mat\nB. in a box"


def think(thought: str, answer: str) -> str:
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("thought", "answer", "expected"),
    [
        ("Stripes: a Tiger.", "tiger", 1),
        ("TIGER", "Tiger ", 1),
        ("a tiger shark", "tiger", 0),
        ("a tiger shark", "tiger shark", 1),
        ("no tiger shark, but a tiger", "tiger", 1 / 2),
        ("cat or tiger", "cat", 1 / 2),
        ("cat, tiger, tiger shark, BAE 146-200", "cat", 1 / 4),
        ("tigers", "tiger", 0),
        ("concatenate", "cat", 0),
        ("it is polka dotted", "polka_dotted", 1),
        ("a BAE 146-200!", "BAE 146-200", 1),
        ("a BAE 146-2000", "BAE 146-200", 0),
        ("17", "7", 0),
        ("这是虎。", "虎", 1),
        ("a dog", "dog", 1),  # out of the list
        ("a dog or a cat", "dog", 1 / 2),
        ("it is this.", "cat", 0),
        (".*|(", "cat", 0),
        ("puss", "cat", 1),
    ],
)
def test_think(thought: str, answer: str, expected: float) -> None:
    found = consistency(think(thought, answer), LISTED, mode="think", aliases={"cat": ["puss"]})
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("problem", "thought", "answer", "expected"),
    [
        (CHOICE, "it sits left", "(A)", 1),
        (CHOICE, "so (A)", "(A)", 1),
        (CHOICE, "not right but left", "(A)", 1 / 2),
        (BARE_CHOICE, "A cat is in a box", "B", 1),  # "A" there is no letter
        (BARE_CHOICE, "A cat", "A", 0),
        ("What is it?", "a Cat and a dog", "cat", 1),  # open-ended
        ("What is it?", "a dog", "cat", 0),
    ],
)
def test_other_questions(problem: str, thought: str, answer: str, expected: float) -> None:
    assert consistency(think(thought, answer), problem, mode="think") == expected


@pytest.mark.parametrize(
    ("completion", "mode", "expected"),
    [
        ("<answer>cat</answer><reason>a cat</reason>", "think_after_answer", 1),
        ("<answer>cat</answer><reason>a tiger</reason>", "think_after_answer", 0),
        (think("a cat", "cat"), "adaptive", 1),
        ("<answer>cat</answer>", "adaptive", None),
        ("cat", "adaptive", None),
        ("cat", "no_think", None),
        ("<think>cat</think>", "think", None),
        (think("cat", "cat") + ".", "think", None),
        ("", "think", None),
    ],
)
def test_every_mode(completion: str, mode: Mode, expected: float | None) -> None:
    assert consistency(completion, LISTED, mode=mode) == expected


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>_"), min_size=1, max_size=12)


@settings(deadline=None)
@given(plain, plain)
def test_it_is_a_share_and_an_answer_that_is_its_own_thought_is_consistent(thought: str, answer: str) -> None:
    found = consistency(think(thought, answer), LISTED, mode="think")
    assert found is None or 0 <= found <= 1
    same = consistency(think(answer, answer), "What is it?", mode="think")
    assert same is None or same == 1
