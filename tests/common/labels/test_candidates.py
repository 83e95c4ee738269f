from __future__ import annotations

import pytest

from common.labels.candidates import candidates, options, with_candidates


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("What?\nPlease choose one from list [ a, b c, d.e].", ["a", "b c", "d.e"]),
        ("Choose from list [one].", ["one"]),
        (with_candidates("Is [this] it?", ["BAE 146-200", "BAE 146-300"]), ["BAE 146-200", "BAE 146-300"]),
        ("What type of flower is in the photo?", None),
        ("An empty list [].", None),
    ],
)
def test_candidates_are_read_back(problem: str, labels: list[str] | None) -> None:
    assert candidates(problem) == labels


@pytest.mark.parametrize(
    ("problem", "letters"),
    [
        ("Where is it? Select from the following choices.\n(A) left\n(B) right", ["(A)", "(B)"]),
        ("Which one?\n A. red\n B. blue\n C. green\nAnswer with the letter.", ["A", "B", "C"]),
        ("Which one?\nA) red\nB) blue", ["A", "B"]),
        ("Which one, (A) or (B)?", None),
        ("A. Turing was\nC. Shannon too", None),
        ("A photo.\nI. Newton", None),
        ("(A) alone", None),
    ],
)
def test_options_of_a_multiple_choice_question(problem: str, letters: list[str] | None) -> None:
    assert candidates(problem) == letters


def test_what_each_option_says() -> None:
    assert options("Where?\n(A) left \n(B) right, or so") == {"(A)": "left", "(B)": "right, or so"}
    assert options("A. Turing was\nC. Shannon too") == {}
