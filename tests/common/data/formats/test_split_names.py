"""Names of splits as people write them, and which of them is found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from common.data.formats.split_names import find_split, pick_split, read_split_name, refuse_twins, word_of_split
from common.errors import DataError

WORDS = {
    "train": ["train", "training", "trn"],
    "test": ["test", "testing", "tst"],
    "val": ["val", "valid", "validate", "validation"],
    "dev": ["dev"],
    "eval": ["eval", "evaluation"],
}
SHAPES = [
    "{}",
    "{}_set",
    "{}-set",
    "{}set",
    "{}dir",
    "{}folder",
    "seg_{}",
    "{}_images",
    "images_{}",
    "{} images",
    "{}.split",
    "{}_data",
]
CASES: list[Callable[[str], str]] = [str, str.upper, str.title]


@pytest.mark.parametrize(("split", "words"), WORDS.items())
def test_a_split_is_read_in_any_case_with_the_usual_beginnings_and_ends(split: str, words: list[str]) -> None:
    for word, shape, case in product(words, SHAPES, CASES):
        name = case(shape.format(word))
        read = read_split_name(name)
        assert read is not None and (read.split, read.rank) == (split, 0), name


@pytest.mark.parametrize(
    ("name", "split", "rank"),
    [
        ("train2017", "train", 1),
        ("val_2", "val", 1),
        ("TrainImages", "train", 0),
        ("trainingSet", "train", 0),
        ("cars_train", "train", 2),
        ("test_tube", "test", 2),
        ("trainval", "train", 2),
    ],
)
def test_a_number_or_another_word_makes_it_less_sure(name: str, split: str, rank: int) -> None:
    read = read_split_name(name)
    assert read is not None and (read.split, read.rank) == (split, rank)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "holdout",
        "base_test",
        "new_test",
        "train_extra",
        "unlabeled_train",
        "strains",
        "tr_te",
        "track",
        "attest",
        "train_test",
        "cat",
    ],
)
def test_names_of_their_own(name: str) -> None:
    assert read_split_name(name) is None


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (["Training", "Testing"], "train", ["Training"]),
        (["Training", "Testing"], "Training", ["Training"]),
        (["Train", "base_test", "new_test"], "test", []),
        (["base_train", "base_test", "new_test"], "train", []),
        (["base_train"], "Base_Train", ["base_train"]),
        (["test"], "base_test", []),
        (["train"], "train2017", []),
        (["validation"], "val", ["validation"]),
        (["val"], "test", []),
        (["train", "train2", "cars_train"], "train", ["train"]),
        (["train2", "cars_train"], "train", ["train2"]),
        (["cars_train"], "training", ["cars_train"]),
        (["train2014", "train2017"], "train", ["train2014", "train2017"]),
        (["train2014", "train2017"], "train2014", ["train2014"]),
        (["holdout", "train"], "Holdout", ["holdout"]),
        ([""], "train", []),
        (["dev", "eval"], "test", []),
        (["tr", "te"], "train", ["tr"]),
        (["Trains", "Tests"], "test", ["Tests"]),
        (["tr", "val", "te"], "train", ["tr"]),
        (["en", "tr"], "train", []),
        (["planes", "trains"], "train", []),
        (["train", "tr", "te"], "train", ["train"]),
    ],
)
def test_what_is_asked_for_is_found(names: list[str], asked: str, found: list[str]) -> None:
    assert find_split(names, asked) == found
    if len(found) > 1:
        with pytest.raises(DataError, match="more than one split") as caught:
            pick_split("set", names, asked)
        assert all(name in str(caught.value.got) for name in found)
    else:
        assert pick_split("set", names, asked) == (found[0] if found else None)


@pytest.mark.parametrize("twins", [["Train", "training"], ["val", "Validation"], ["test-set", "TEST"]])
def test_two_names_of_one_split_are_named(twins: list[str]) -> None:
    with pytest.raises(DataError, match="more than once") as caught:
        refuse_twins("set", [*twins, "base_train", "holdout", "train2014", "train2017", "cars_train"])
    assert all(twin in str(caught.value.got) for twin in twins)


def test_the_word_that_says_a_split_keeps_its_letters() -> None:
    words = {"seg_Train": "Train", "x-TEST-7": "TEST", "base_test": "base_test", "trainset": "trainset", "cat": ""}
    assert {name: word_of_split(name) for name in words} == words
