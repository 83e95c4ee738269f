"""What tells the rows of a run from others: every change of a row is noticed, and no change of where the rows lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.config.schema import DataConfig
from common.data.content.digests import digest_columns
from common.data.sources import ExampleSource, load
from common.data.stream import PromptStream, StreamState, check_rows, digest_rows
from common.data.table import Table
from common.errors import DataError
from tests.helpers.makers import parquet, unlike

Row = dict[str, Any]


def rows_of(count: int) -> list[Row]:
    return [
        {
            "problem": f"What is it?\nPlease choose one from list [ a, b, c{number % 2}].",
            "image": {"bytes": unlike(str(number)), "path": f"{number}.png"},
            "solution": "ab"[number % 2],
            "weight": number / 3,
            "note": {"by": "me", "at": [1, None, number]},
        }
        for number in range(count)
    ]


def source(rows: list[Row]) -> ExampleSource:
    table = Table(name="set (train)", split="train", columns=tuple(rows[0]), rows=rows, root=None)
    return ExampleSource(table, range(len(rows)), DataConfig(image_size=4, check_candidates=False))


def state_on(rows: list[Row]) -> StreamState:
    return PromptStream(source(rows), seed=0, prompts_per_step=1).state()


def one_pixel_else(image: Row, at: int) -> Row:
    pixels = np.array(Image.open(BytesIO(image["bytes"])))
    pixels.reshape(-1)[at % pixels.size] ^= 1
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return image | {"bytes": buffer.getvalue()}


CHANGES: dict[str, Callable[[Row, int], Row]] = {
    "labels": lambda row, at: {"solution": "c"},
    "questions": lambda row, at: {"problem": row["problem"].replace("it?", "this?")},
    "pictures": lambda row, at: {"image": one_pixel_else(row["image"], at)},
    "other columns": lambda row, at: {"weight": row["weight"] + 1e-9},
    "other columns ": lambda row, at: {"note": row["note"] | {"at": [1, 0, at]}},
}


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.data())
def test_any_change_of_any_row_is_noticed_and_named(count: int, data: st.DataObject) -> None:
    before = rows_of(count)
    kind, at = data.draw(st.sampled_from(sorted(CHANGES))), data.draw(st.integers(0, count - 1))
    after = list(before)
    after[at] = before[at] | CHANGES[kind](before[at], data.draw(st.integers(0, 287)))
    with pytest.raises(DataError, match="does not hold the rows that the run began with") as caught:
        check_rows(state_on(before), source(after))
    assert caught.value.got == f"as many rows, with other {kind.strip()}"


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.data())
def test_another_order_is_noticed_and_named(count: int, data: st.DataObject) -> None:
    before = rows_of(count)
    order = data.draw(st.permutations(range(count)))
    after = [before[row] for row in order]
    if order == list(range(count)):
        check_rows(state_on(before), source(after))
    else:
        with pytest.raises(DataError) as caught:
            check_rows(state_on(before), source(after))
        assert caught.value.got == "the same rows in another order"


def test_swapped_labels_are_noticed() -> None:
    before = rows_of(4)
    after = [row | {"solution": "ab"[row["solution"] == "a"]} for row in before]
    with pytest.raises(DataError) as caught:
        check_rows(state_on(before), source(after))
    assert caught.value.got == "as many rows, with other labels"


@settings(deadline=None, max_examples=20)
@given(cuts=st.sets(st.integers(1, 8)))
def test_the_same_rows_in_other_files_are_the_same(tmp_path_factory: pytest.TempPathFactory, cuts: set[int]) -> None:
    """Other folders, shards, encodings of the pictures, paths within them, and orders of the columns."""
    rows, place = rows_of(9), tmp_path_factory.mktemp("set")
    edges = [0, *sorted(cuts), 9]
    for number, (first, last) in enumerate(pairwise(edges)):
        moved = [dict(reversed((row | {"image": again(row["image"])}).items())) for row in rows[first:last]]
        parquet(place / f"train-{number:05}-of-{len(edges) - 1:05}.parquet", moved)
    found = load(DataConfig(path=str(place), image_size=4, check_candidates=False), split="train")
    check_rows(state_on(rows), found)


def again(image: Row) -> Row:
    buffer = BytesIO()
    Image.open(BytesIO(image["bytes"])).save(buffer, "BMP")
    return {"bytes": buffer.getvalue(), "path": "elsewhere.bmp"}


def test_saved_to_disk_the_rows_are_the_same(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = rows_of(5)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "set"))
    found = load(DataConfig(path=str(tmp_path / "set"), image_size=4, check_candidates=False), split="train")
    check_rows(state_on(rows), found)


def test_the_size_that_pictures_are_resized_to_is_in_no_digest() -> None:
    rows = rows_of(2)
    table = Table(name="set (train)", split="train", columns=tuple(rows[0]), rows=rows, root=None)
    sizes = [
        ExampleSource(table, range(2), DataConfig(image_size=size, cache_mb=mb)) for size in (4, None) for mb in (0, 9)
    ]
    assert len({str(digest_rows(one)) for one in sizes}) == 1


def test_a_state_travels_as_json_and_one_of_before_compares_the_number_alone() -> None:
    import json

    state = state_on(rows_of(3))
    assert StreamState(**json.loads(json.dumps(asdict(state)))) == state
    old = StreamState(rows=3, epoch=0, position=0, deferred=())
    check_rows(old, source(rows_of(3)[::-1]))
    with pytest.raises(DataError, match="the run began with"):
        check_rows(old, source(rows_of(4)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 1.0}),
        ({"a": "1"}, {"a": 1}),
        ({"a": [1, 2]}, {"a": [[1], 2]}),
        ({"a": "b", "c": "d"}, {"a": "b,c:d"}),
        ({"a": None}, {}),
        ({"a": b"x"}, {"a": "x"}),
        ({"a": {"b": 1}}, {"a": {"c": 1}}),
    ],
)
def test_columns_that_differ_have_other_digests(one: Row, other: Row) -> None:
    assert digest_columns(one) != digest_columns(other)
    assert digest_columns(dict(reversed(one.items()))) == digest_columns(one)
