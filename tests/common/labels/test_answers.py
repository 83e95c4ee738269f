"""One implementation says what is right."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.labels.aliases import check_aliases
from common.labels.answers import (
    TAGS,
    Mode,
    choose_closed_set,
    extract,
    find_candidate,
    is_right,
    is_well_formed,
    thought,
)

MODES: tuple[Mode, ...] = ("no_think", "think", "think_after_answer", "adaptive")
WRITTEN: dict[Mode, str] = {  # an answer and a thought, as each mode asks for them
    "no_think": "{answer}",
    "think": "<think>{thought}</think>\n<answer>{answer}</answer>",
    "think_after_answer": "<answer>{answer}</answer> <reason>{thought}</reason>",
    "adaptive": "<answer> {answer}\n</answer>",
}
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
    assert not is_right(f"{completion}.", label, mode="think")
    assert not is_right(f"{completion}<answer>{label}</answer>", label, mode="think")


@unhurried
@given(st.sampled_from(MODES), plain, plain, plain, st.lists(plain, max_size=3))
def test_the_single_answer_equals_the_label_or_an_alias_and_nothing_else_wins(
    mode: Mode, said: str, answer: str, label: str, aliases: list[str]
) -> None:
    normal = canonical if mode != "no_think" else lambda text: unicodedata.normalize("NFC", text)
    completion = WRITTEN[mode].format(answer=answer, thought=said)
    equal = normal(answer) in {normal(name) for name in (label, *aliases)}
    assert is_right(completion, label, mode=mode, aliases=aliases) == equal
    for name in (label, *aliases):
        assert is_right(WRITTEN[mode].format(answer=name, thought=said), label, mode=mode, aliases=aliases)
        if mode != "no_think":
            assert not is_right(completion + f"<answer>{name}</answer>", label, mode=mode, aliases=aliases)
    if mode == "adaptive":
        assert is_right(answer, label, mode=mode, aliases=aliases) == equal


piece = st.sampled_from([*TAGS, NFC, NFD, "CAFÉ", "tea", "cafe", " ", "\n", "\0", "\u202e", "<", "(.*)"])
few = st.lists(piece, max_size=2).map("".join)
block = st.tuples(few, st.just("<answer>"), few, st.just("</answer>"), few).map("".join)


@unhurried
@given(block | st.lists(piece).map("".join))
def test_markup_of_any_kind_wins_only_with_one_answer_block_that_holds_the_label(completion: str) -> None:
    """Against another way of saying so, both ways round: what is right has that form, and what has it is right."""
    once = completion.count("<answer>") == completion.count("</answer>") == 1
    last = re.fullmatch(r".*<answer>(.*)</answer>\s*", completion, re.DOTALL)
    first = re.fullmatch(r"\s*<answer>(.*)</answer>.*", completion, re.DOTALL)
    bare = not any(tag in completion for tag in TAGS)
    thinks = once and last is not None and canonical(last[1]) == NFC
    explains = once and first is not None and canonical(first[1]) == NFC
    assert is_right(completion, NFD, mode="think") == thinks
    assert is_right(completion, NFD, mode="think_after_answer") == explains
    assert is_right(completion, NFD, mode="adaptive") == (canonical(completion) == NFC if bare else thinks)
    assert is_right(completion, NFD, mode="no_think") == (unicodedata.normalize("NFC", completion) == NFC)


@unhurried
@given(plain, plain)
def test_lenient_accepts_everything_that_strict_does(completion: str, label: str) -> None:
    for mode in MODES:
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
def test_wrong_labels_that_cls_rl_let_pass(given_answer: str, label: str) -> None:
    """Fault 1 and fault 2: labels compared as numbers, and as substrings."""
    assert not is_right(given_answer, label, mode="no_think")
    for mode in MODES:
        completion = WRITTEN[mode].format(answer=given_answer, thought=label)
        assert not is_right(completion, label, mode=mode)
        assert find_candidate(completion, [label], mode=mode) is None


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
        (" Tiger\n", False),  # no block, no answer
        ("<answer>tiger</answer> or so", False),
        ("<answer>tiger</answer><think>t</think>", False),
        ("so: <answer>tiger</answer>", True),
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
def test_lenient_is_the_evaluation_of_cls_rl(completion: str, label: str, right: bool) -> None:
    assert is_right(completion, label, mode="think", variant="lenient") == right


@pytest.mark.parametrize(
    ("completion", "mode", "answer"),
    [
        (" tiger ", "no_think", " tiger "),
        ("<think>t</think><answer> a b </answer>", "think", "a b"),
        (" tiger ", "think", None),
        (" tiger ", "adaptive", "tiger"),
        ("<think>t</think> tiger", "adaptive", None),
        ("<think>t</think><answer>tiger</answer>", "adaptive", "tiger"),
        ("<answer>tiger</answer><reason>r</reason>", "think_after_answer", "tiger"),
        ("<reason>r</reason><answer>tiger</answer>", "think_after_answer", None),
        ("<answer>tiger</answer>", "think_after_answer", "tiger"),
        ("<answer>a</answer><answer>b</answer>", "think", None),
    ],
)
def test_extract(completion: str, mode: Mode, answer: str | None) -> None:
    assert extract(completion, mode) == answer


@pytest.mark.parametrize(
    ("completion", "mode", "expected"),
    [
        ("ant", "no_think", "ant"),
        ("dog", "no_think", None),
        ("<think>t</think><answer>ANT</answer>", "think", "ant"),
        ("<answer>ant</answer><answer>tiger</answer>", "think", None),
    ],
)
def test_the_candidate_that_is_given(completion: str, mode: Mode, expected: str | None) -> None:
    assert find_candidate(completion, ["tiger", "ant"], mode=mode) == expected


@unhurried
@given(st.sampled_from(TAGS), st.integers(0, len(WELL_FORMED)))
def test_one_tag_more_anywhere_is_malformed(tag: str, place: int) -> None:
    assert is_well_formed(WELL_FORMED, "think")
    assert not is_well_formed(WELL_FORMED[:place] + tag + WELL_FORMED[place:], "think")


@pytest.mark.parametrize(
    ("completion", "forms"),
    [
        ("cat", {"no_think", "adaptive"}),
        ("cat\n", set()),
        (" ", set()),
        ("<answer>cat</answer>", {"adaptive"}),
        ("<answer> </answer>", set()),
        ("<think>t</think><answer>cat</answer>", {"think", "adaptive"}),
        ("<think> </think><answer>cat</answer>", set()),
        ("<think>t</think>cat", set()),
        ("<answer>cat</answer>\n<reason>r</reason>", {"think_after_answer"}),
        ("<answer>cat</answer><reason></reason>", set()),
        ("<reason>r</reason><answer>cat</answer>", set()),
        ("<think>t<reason>r</reason></think><answer>cat</answer>", set()),
        ("<answer>cat</answer><answer>cat</answer>", set()),
    ],
)
def test_what_each_mode_asks_for(completion: str, forms: set[Mode]) -> None:
    assert {mode for mode in MODES if is_well_formed(completion, mode)} == forms


@pytest.mark.parametrize(
    ("completion", "mode", "expected"),
    [
        ("<think>t</think><answer>a</answer>", "think", "t"),
        ("<think>t</think><answer>a</answer>", "adaptive", "t"),
        ("<answer>a</answer><reason>r</reason>", "think_after_answer", "r"),
        ("<answer>a</answer>", "adaptive", None),
        ("a", "adaptive", None),
        ("a", "no_think", None),
        ("<think>t</think><answer>a</answer>.", "think", None),
    ],
)
def test_thought(completion: str, mode: Mode, expected: str | None) -> None:
    assert thought(completion, mode) == expected


def test_named_is_the_candidate_given_itself_or_by_an_alias() -> None:
    aliases = {"aeroplane": ["airplane", "plane"]}
    assert find_candidate("plane", ["ship", "aeroplane"], mode="no_think", aliases=aliases) == "aeroplane"
    assert find_candidate("planes", ["ship", "aeroplane"], mode="no_think", aliases=aliases) is None
    assert find_candidate("plane", ["ship"], mode="no_think", aliases=aliases) is None


def test_closed_choice_is_the_likeliest_candidate_by_sum_or_by_mean() -> None:
    assert choose_closed_set([-3.0, -1.0, -1.0]) == 1
    assert choose_closed_set([-1.0, -1.5], lengths=[1, 3]) == 1
    with pytest.raises(ValueError, match="shorter"):
        choose_closed_set([-1.0, -1.5], lengths=[1])


@pytest.mark.parametrize(
    ("aliases", "words"),
    [
        ({"cat": ["Dog "]}, r"'Dog ' of 'cat' also names 'dog'"),
        ({"cat": ["pet"], "dog": ["PET"]}, "also names 'dog'"),
        ({"cat": [" "]}, "'cat' has a blank alias"),
    ],
)
def test_an_alias_that_is_another_labels_name_is_refused(aliases: dict[str, list[str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_aliases(aliases, ["cat", "dog"])


def test_aliases_of_unknown_labels_are_told() -> None:
    assert check_aliases({"cat": ["puss", "Cat"], "ox": ["bull"]}, ["cat", "dog"]) == ["ox"]
