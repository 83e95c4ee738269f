"""Laws of the lists: the same classes or as many, the right one among them, and resumed = uninterrupted."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.schema import DataConfig
from common.data.reshuffle import Reshuffle
from common.data.sources import ExampleSource, load
from common.data.stream import PromptStream, StreamState
from common.errors import DataError
from common.labels.candidates import candidates, read_list, replace_list, with_candidates
from tests.helpers.makers import parquet, row

LABELS = tuple(f"class {letter}" for letter in "abcdefghij")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ExampleSource:
    """Ten rows, each of its own label; each offers the four labels from its own on."""
    rows = []
    for number, label in enumerate(LABELS):
        offered = [LABELS[(number + step) % 10] for step in range(4)]
        rows.append(row(problem=with_candidates("Which is it?", offered), solution=label))
    path = parquet(tmp_path_factory.mktemp("set") / "set.parquet", rows)
    return load(DataConfig(path=path, image_size=8), split="train")


def stream(source: ExampleSource, *, anew: bool, seed: int = 1, size: int = 4) -> PromptStream:
    return PromptStream(source, seed=seed, prompts_per_step=size, worded=Reshuffle(source, seed=seed, anew=anew))


def lists(found: PromptStream, batches: int, size: int = 4) -> list[list[tuple[str, tuple[str, ...]]]]:
    """(row id, its list) by batch."""
    return [
        [(example.id, tuple(candidates(example.problem) or ())) for example in found.read(found.draw(size))]
        for _ in range(batches)
    ]


@pytest.mark.parametrize("anew", [False, True])
def test_every_visit_lists_the_right_class_and_as_many_as_the_row(source: ExampleSource, anew: bool) -> None:
    own = {outline.id: outline for outline in source.outlines}
    seen: dict[str, list[tuple[str, ...]]] = {outline.id: [] for outline in source.outlines}
    for row_id, offered in chain.from_iterable(lists(stream(source, anew=anew), 40)):
        theirs = read_list(own[row_id].problem) or []
        assert own[row_id].label in offered and len(set(offered)) == len(theirs)
        assert set(offered) <= set(LABELS) if anew else set(offered) == set(theirs)
        seen[row_id].append(offered)
    for row_id, offers in seen.items():
        assert len(offers) == 16 and len(set(offers)) > 8
        places = {offered.index(own[row_id].label) for offered in offers}
        assert len(places) > 1, "the place of the right class tells nothing"
    everywhere = {label for offers in seen["train/0"] for label in offers}
    assert len(everywhere) == (10 if anew else 4)


@pytest.mark.parametrize("anew", [False, True])
def test_nothing_but_the_list_changes(source: ExampleSource, anew: bool) -> None:
    example = source[3]
    asked = Reshuffle(source, seed=1, anew=anew)(example, 7)
    assert asked.problem != example.problem
    assert replace_list(asked.problem, ()) == replace_list(example.problem, ())
    assert (asked.id, asked.label, asked.columns) == (example.id, example.label, example.columns)
    assert asked.image is example.image


@given(st.integers(0, 9), st.integers(0, 9), st.booleans(), st.integers(1, 10))
def test_resumed_is_uninterrupted(source: ExampleSource, before: int, after: int, anew: bool, size: int) -> None:
    """Also for a batch over two epochs, and for rows deferred from one: the state alone tells their visits."""
    whole, resumed = stream(source, anew=anew, size=size), stream(source, anew=anew, size=size)
    lists(whole, before)
    saved: dict[str, Any] = json.loads(json.dumps(asdict(whole.state())))
    lists(resumed, 2)
    resumed.restore(StreamState(**saved))
    assert lists(resumed, after) == lists(whole, after)


def test_a_row_is_never_asked_twice_alike_by_mistake_of_its_visit(source: ExampleSource) -> None:
    """Three batches of seven rows and more: rows of one epoch lie in two batches, some of them deferred."""
    reshuffle = Reshuffle(source, seed=1, anew=False)
    visits: dict[str, int] = {}
    for batch in lists(stream(source, anew=False, size=7), 30, 7):
        for row_id, offered in batch:
            visit = visits[row_id] = visits.get(row_id, -1) + 1
            expected = reshuffle(source[int(row_id.removeprefix("train/"))], visit)
            assert tuple(candidates(expected.problem) or ()) == offered


def test_lists_depend_on_the_seed(source: ExampleSource) -> None:
    first = lists(stream(source, anew=True), 3)
    assert first == lists(stream(source, anew=True), 3) != lists(stream(source, anew=True, seed=2), 3)


def test_options_and_open_questions_stay_as_they_are(tmp_path: Path) -> None:
    options = "Where is it?\n(A) left\n(B) right"
    rows = [row(), row(problem=options, solution="(A)"), row(problem="What is it?")]
    source = load(DataConfig(path=parquet(tmp_path / "set.parquet", rows), image_size=8), split="train")
    reshuffle = Reshuffle(source, seed=1, anew=True)
    assert [reshuffle(source[number], 5).problem for number in (1, 2)] == [options, "What is it?"]


def test_without_a_list_it_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "set.parquet", [row(problem="What is it?")])
    with pytest.raises(DataError, match=r"no question of .* has a class list") as caught:
        Reshuffle(load(DataConfig(path=path, image_size=8), split="train"), seed=1, anew=False)
    assert "data.reshuffle" in caught.value.remedy


@pytest.mark.parametrize(
    ("problem", "wanted"),
    [
        ("Is it? Choose from list [ a, b].", "Is it? Choose from list [ x, y]."),
        ("list [a, b ] or what?", "list [x, y ] or what?"),
        ("From list [ s, t] or list [ u, v].", "From list [ x, y] or list [ u, v]."),
        ("What is it?", "What is it?"),
    ],
)
def test_a_list_is_replaced_in_place(problem: str, wanted: str) -> None:
    assert replace_list(problem, ["x", "y"]) == wanted
