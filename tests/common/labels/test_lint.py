"""Every label that CLS-RL's metrics took for another is flagged here, and scores 0 under the strict metric."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from common.errors import DataError
from common.labels.answers import Mode, is_right
from common.labels.lint import Finding, lint, settle, unanswerable, unlistable

SEEDS = [
    ("tiger shark", "tiger", "as words"),
    ("polka-dotted", "dotted", "as words"),
    ("elephant", "ant", "as letters"),
    ("BAE 146-200", "BAE 146-300", "only in digits"),
    ("Audi A4 2000", "AM General Hummer 2000", "in the same number"),
]


def found(labels: Sequence[str], *, mode: Mode = "no_think", lists: Sequence[Sequence[str]] = ()) -> dict[str, Finding]:
    return {finding.what: finding for finding in lint(labels, lists, mode=mode)}


def one(labels: Sequence[str], words: str, *, lists: Sequence[Sequence[str]] = (), mode: Mode = "no_think") -> Finding:
    """The one finding, whose kind holds `words`."""
    findings = [finding for what, finding in found(labels, mode=mode, lists=lists).items() if words in what]
    assert len(findings) == 1, found(labels, mode=mode, lists=lists)
    return findings[0]


@pytest.mark.parametrize(("one_label", "other", "words"), SEEDS)
def test_pairs_that_cls_rl_took_for_equal_are_flagged_and_score_nothing(one_label: str, other: str, words: str) -> None:
    finding = one([one_label, other, "zebra"], words)
    assert not finding.stops and len(finding.cases) == 1
    assert repr(one_label) in finding.cases[0] and repr(other) in finding.cases[0]
    for answer, label in ((one_label, other), (other, one_label)):
        assert is_right(answer, answer, mode="no_think") and not is_right(answer, label, mode="no_think")
        thought = f"<think>so</think> <answer>{answer}</answer>"
        assert is_right(thought, answer, mode="think") and not is_right(thought, label, mode="think")


@pytest.mark.parametrize(
    "labels",
    [("Cat", "cat"), ("black cat", "black_cat"), ("caf\u00e9", "cafe\u0301"), ("big  cat", "big cat"), ("\uff21", "A")],
)
def test_look_alikes_are_flagged(labels: tuple[str, str]) -> None:
    assert len(one(labels, "differ only in case").cases) == 1


def test_labels_that_are_plainly_different_are_not() -> None:
    assert lint(["cat", "dog", "sea horse"], [["cat", "dog"], ["sea horse", "dog"]], mode="think") == []


@pytest.mark.parametrize(
    ("labels", "mode", "stops"),
    [
        (["Cat", "cat"], "no_think", False),
        (["Cat", "cat"], "think", True),
        (["Cat", "cat"], "adaptive", True),
        (["caf\u00e9", "cafe\u0301"], "no_think", True),
        (["Stra\u00dfe", "STRASSE"], "think", True),
        (["big cat", "big_cat"], "think", False),
    ],
)
def test_what_the_metric_cannot_tell_apart_in_one_list_stops(labels: list[str], mode: Mode, stops: bool) -> None:
    errors = [finding for finding in lint(labels, [labels], mode=mode) if finding.stops]
    assert bool(errors) is stops
    one_block = labels[0] if mode == "no_think" else f"<think>so</think><answer>{labels[0]}</answer>"
    assert is_right(one_block, labels[1], mode=mode) is stops, "an error is just what the metric would get wrong"
    if stops:
        with pytest.raises(DataError, match=r"labels of pets cannot be used\n.*same answer") as caught:
            settle("pets", errors, say=print)
        assert "rename" in caught.value.remedy


def test_it_does_not_stop_where_no_list_offers_both() -> None:
    findings = lint(["Yes", "yes"], [["Yes", "No"], ["yes", "no"]], mode="think")
    assert findings and not any(finding.stops for finding in findings)


def test_a_label_listed_twice_is_flagged() -> None:
    assert one([], "listed twice", lists=[["cat", "dog", "cat"], ["dog"]]).cases == ("'cat'",)


@pytest.mark.parametrize(
    ("label", "bad"), [("a, b", True), ("a]", True), (" a", True), ("a (b) [c", False), ("a", False)]
)
def test_labels_no_list_can_hold(label: str, bad: bool) -> None:
    assert bool(unlistable([label]).cases) is bad


def test_labels_too_long_for_a_completion_stop() -> None:
    sizes = {"cat": 1, "tabby": 3, "house cat": 5, "puss": 2}
    finding = unanswerable(["cat", "tabby", "house cat"], {"tabby": ["puss"]}, sizes.__getitem__, 2)
    assert finding.stops and finding.cases == ("'house cat' has 5",)


def test_warnings_are_counted_and_the_first_named() -> None:
    said: list[str] = []
    settle(
        "x",
        lint([f"plane {number}" for number in range(9)] + ["cat", *(f"cat{n}" for n in "abcde")], [], mode="think"),
        say=said.append,
    )
    letters, digits = said
    assert letters.startswith("warning: labels inside others as letters") and "(5): 'cat' in 'cata'" in letters
    assert letters.endswith("and 2 more")
    assert digits.endswith("(1): 'plane 0' / 'plane 1' / 'plane 2' and 6 like them")


def test_a_part_that_is_once_a_word_counts_as_one() -> None:
    assert one(["ant", "elephant ant"], "as words").cases == ("'ant' in 'elephant ant'",)


def test_the_lenient_metric_passes_what_is_flagged_as_inside() -> None:
    labels = ["Tiger", "tiger_shark", "ant", "elephant", "sea horse", "horse"]
    flagged = {
        case for finding in lint(labels, [], mode="no_think") if "inside" in finding.what for case in finding.cases
    }
    pairs = [(part, whole) for part in labels for whole in labels if part != whole]
    passing = {(p, w) for p, w in pairs if is_right(w, p, mode="no_think", variant="lenient")}
    assert flagged == {f"{part!r} in {whole!r}" for part, whole in passing} and len(flagged) == 3


def test_a_thousand_labels_take_a_moment() -> None:
    labels = [f"{word} number {chr(97 + i % 26)}{chr(97 + i // 26)}" for word in ("bird", "fish") for i in range(500)]
    start = time.process_time()
    lint(labels, [labels], mode="think")
    assert time.process_time() - start < 2
