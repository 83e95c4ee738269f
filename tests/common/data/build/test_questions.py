"""Candidate policies: CLS-RL's rule, whole lists, hard negatives."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.build.questions import chooser, list_length, read_confusions
from common.data.draws import generator
from common.errors import DataError

TRIPLES = [["a", "b", 5], ["c", "a", 3], ["a", "a", 90], ["a", "", 40], ["d", "e", 2], ["z", "a", 9]]


@pytest.mark.parametrize(
    ("classes", "length"), [(2, 2), (47, 47), (74, 74), (75, 30), (101, 40), (196, 78), (397, 100), (1000, 100)]
)
def test_list_length_by_the_rule_of_cls_rl(classes: int, length: int) -> None:
    assert list_length(classes) == length


@given(st.integers(2, 300), st.integers(0, 3))
def test_the_rule_of_cls_rl_always_lists_the_label(classes: int, seed: int) -> None:
    labels = [f"class {number}" for number in range(classes)]
    choose = chooser("cls_rl", confusions=None, length=None)
    for label in labels[:: max(1, classes // 5)]:
        offered = choose(label, labels, generator(seed, label))
        assert label in offered and len(offered) == len(set(offered)) == list_length(classes)
        assert offered == choose(label, labels, generator(seed, label)) and set(offered) <= set(labels)
        if len(offered) == classes:
            assert offered == labels, "whole lists keep their order: one question for all rows"


def test_the_place_of_the_truth_is_any() -> None:
    labels = [f"class {number}" for number in range(100)]
    choose = chooser("cls_rl", confusions=None, length=None)
    places = Counter(choose(labels[7], labels, generator(row)).index(labels[7]) for row in range(400))
    assert len(places) == 40 and max(places.values()) < 40


def test_all_is_every_label_in_order() -> None:
    labels = [f"class {number}" for number in range(200)]
    assert chooser("all", confusions=None, length=None)(labels[3], labels, generator(0)) == labels


def test_hard_negatives_are_those_most_often_confused(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({"accuracy": 0.5, "confusion": TRIPLES}))
    labels = list("abcdef")
    confusions = read_confusions(file, labels)
    assert confusions == {frozenset("ab"): 5, frozenset("ac"): 3, frozenset("de"): 2}
    offers = [chooser("hard", confusions=confusions, length=3)("a", labels, generator(row)) for row in range(20)]
    assert {frozenset(offered) for offered in offers} == {frozenset("abc")} and len({*map(tuple, offers)}) > 3
    filled = [chooser("hard", confusions=confusions, length=3)("e", labels, generator(row)) for row in range(20)]
    assert all({"d", "e"} < set(offered) for offered in filled)
    assert {label for offered in filled for label in offered} == set(labels), "chance fills up"
    assert len(chooser("hard", confusions=confusions, length=None)("a", labels, generator(0))) == 2
    assert len(chooser("hard", confusions=confusions, length=50)("a", labels, generator(0))) == 6


def test_of_evaluations_the_last_step_counts(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 0, "set": "held-out", "confusion": [["a", "b", 9]]},
        {"step": 5, "set": "held-out", "confusion": [["a", "c", 1]]},
        {"step": 5, "set": "other", "confusion": [["x", "y", 1]]},
    ]
    (tmp_path / "evaluations.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_confusions(tmp_path / "evaluations.jsonl", list("abc")) == {frozenset("ac"): 1}
    (tmp_path / "triples.json").write_text(json.dumps(TRIPLES))
    assert read_confusions(tmp_path / "triples.json", list("abc")) == {frozenset("ab"): 5, frozenset("ac"): 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"confusion": [["x", "y", 3]]}', "no two labels"),
        ('{"accuracy": 1}', "cannot be read"),
        ("[]", "no two labels"),
        ('[["a", "b"]]', "cannot be read"),
        ("nonsense", "cannot be read"),
    ],
)
def test_a_file_without_confusions_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_confusions(tmp_path / "x.json", list("abc"))
