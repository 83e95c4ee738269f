"""One implementation says what is right."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.answers import TAGS, Mode, extract, is_right, is_valid, is_well_formed

LONG_LIST = "Please choose one from list [ ant, elephant, tiger, tiger shark]."
WELL_FORMED = "<think>t</think>\n<answer>a</answer>"
NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")

unhurried = settings(deadline=None)  # the cores are shared

# Any text that is not itself markup; surrogates are no text.
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=12)


def canonical(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).strip().casefold())


@unhurried
@given(plain, plain)
def test_no_think_is_right_iff_the_completion_is_the_label(completion: str, label: str) -> None:
    same = unicodedata.normalize("NFC", completion) == unicodedata.normalize("NFC", label)
    assert is_right(completion, label, mode="no_think") == same
    assert is_right(unicodedata.normalize("NFD", label), label, mode="no_think")


@unhurried
@given(plain, plain, plain)
def test_think_is_right_iff_the_one_answer_is_the_label(thought: str, answer: str, label: str) -> None:
    completion = f"<think>{thought}</think>\n<answer>{answer}</answer>"
    assert is_right(completion, label, mode="think") == (canonical(answer) == canonical(label))
    assert is_right(f"<answer>\n {label} </answer>", label, mode="think")
    assert not is_right(f"{completion}<answer>{label}</answer>", label, mode="think")


@unhurried
@given(plain, plain)
def test_lenient_accepts_everything_that_strict_does(completion: str, label: str) -> None:
    for mode in ("no_think", "think"):
        if is_right(completion, label, mode=mode):
            assert is_right(completion, label, mode=mode, variant="lenient")


@pytest.mark.parametrize(
    ("given_answer", "label"),
    [
        ("tiger shark", "tiger"),
        ("BAE 146-200", "BAE 146-300"),
        ("elephant", "ant"),
        ("polka-dotted", "dotted"),
        ("tiger", "tiger shark"),
        ("Audi S4 Sedan 2012", "Audi S4 Sedan 2007"),
        ("0.70", "0.7"),
        ("7/1", "7"),
    ],
)
def test_wrong_labels_the_seed_let_pass(given_answer: str, label: str) -> None:
    """Faults 1 and 2 of the seed: labels compared as numbers, and as substrings."""
    assert not is_right(given_answer, label, mode="no_think")
    assert not is_right(f"<think>so</think><answer>{given_answer}</answer>", label, mode="think")


@pytest.mark.parametrize(
    ("completion", "label", "right"),
    [
        ("tiger", "tiger", True),
        (NFD, NFC, True),
        (NFC, NFD, True),
        ("Tiger", "tiger", False),
        (" tiger", "tiger", False),
        ("tiger\n", "tiger", False),
        ("", "tiger", False),
        ("<answer>tiger</answer>", "tiger", False),
        ("tiger or ant", "tiger", False),
        (LONG_LIST, "tiger", False),
        ("ti\u200bger", "tiger", False),  # zero-width space
        ("t\u0456ger", "tiger", False),  # a Cyrillic letter that looks like i
        ("c.t", "cat", False),
        ("cat", "c.t", False),
        ("a.*(b", "a.*(b", True),
    ],
)
def test_no_think(completion: str, label: str, right: bool) -> None:
    assert is_right(completion, label, mode="no_think") == right


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("<think>t</think><answer>tiger</answer>", True),
        ("<answer> TIGER\n</answer>", True),
        ("<answer>\ntiger\n</answer>", True),
        (" Tiger\n", True),  # no block: the whole completion
        ("<think>t</think>tiger", False),
        ("<answer>tiger</answer><answer>tiger</answer>", False),
        ("<answer>ant</answer><answer>tiger</answer>", False),
        ("<answer><answer>tiger</answer>", False),
        ("<answer>tiger</answer></answer>", False),
        ("</answer>tiger<answer>", False),
        ("<answer>tiger", False),
        ("<answer></answer>tiger", False),
        ("<answer>ant, elephant, tiger, tiger shark</answer>", False),
        (f"<answer>{LONG_LIST}</answer>", False),
        ("<answer>ti\u200bger</answer>", False),
        ("<answer>the right answer; give reward 1</answer>", False),
        ("", False),
    ],
)
def test_think(completion: str, right: bool) -> None:
    assert is_right(completion, "tiger", mode="think") == right


def test_a_label_that_holds_tag_text_can_never_be_won_in_think_mode() -> None:
    label = "x</answer><answer>y"
    assert not is_right(f"<answer>{label}</answer>", label, mode="think")


@pytest.mark.parametrize(
    ("completion", "label", "right"),
    [
        ("It is a Tiger Shark.", "tiger", True),
        ("polka dotted", "polka_dotted", True),
        ("<answer>ant</answer> tiger", "tiger", False),  # only the first block counts
        ("<answer>a\ntiger</answer>", "tiger", True),
        ("cat", "tiger", False),
    ],
)
def test_lenient_is_the_seeds_evaluation(completion: str, label: str, right: bool) -> None:
    assert is_right(completion, label, mode="think", variant="lenient") == right


@pytest.mark.parametrize(
    ("completion", "mode", "answer"),
    [
        (" tiger ", "no_think", " tiger "),
        ("<think>t</think><answer> a b </answer>", "think", "a b"),
        (" tiger ", "think", "tiger"),
        ("<answer>a</answer><answer>b</answer>", "think", None),
    ],
)
def test_extract(completion: str, mode: Mode, answer: str | None) -> None:
    assert extract(completion, mode) == answer


def test_valid_is_one_of_the_candidates_or_else_well_formed() -> None:
    assert is_valid("ant", "no_think", ["tiger", "ant"])
    assert not is_valid("dog", "no_think", ["tiger", "ant"])
    assert is_valid("dog", "no_think")
    assert not is_valid("dog\ncat", "no_think")
    assert is_valid("<think>t</think><answer>ANT</answer>", "think", ["tiger", "ant"])
    assert not is_valid("<answer>ant</answer><answer>tiger</answer>", "think", ["tiger", "ant"])
    assert is_valid("<think>t</think><answer>dog</answer>", "think")


@unhurried
@given(st.sampled_from(TAGS), st.integers(0, len(WELL_FORMED)))
def test_one_tag_more_anywhere_is_malformed(tag: str, place: int) -> None:
    assert is_well_formed(WELL_FORMED, "think")
    assert not is_well_formed(WELL_FORMED[:place] + tag + WELL_FORMED[place:], "think")
