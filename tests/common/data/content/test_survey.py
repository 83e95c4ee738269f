"""What only all rows together show, seen by the linter, the builder and the door of a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from common.config.schema import DataConfig
from common.data import lint
from common.data.build import __main__ as builder
from common.data.content.copies import Copies, Part
from common.data.content.survey import divide_for_run, survey
from common.data.sources import ExampleSource, load, load_both
from common.data.table import Table
from common.errors import DataError
from common.labels.candidates import read_list, with_candidates
from tests.helpers.makers import image_folder, parquet, unlike

BOTH = with_candidates("What is it?", ["cat", "dog"])


def picture(name: str) -> dict[str, Any]:
    return {"bytes": unlike(name), "path": None}


def saved_again(name: str) -> dict[str, Any]:
    """The pixels of `picture(name)` in another file."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "another")
    buffer = BytesIO()
    Image.open(BytesIO(unlike(name))).save(buffer, "PNG", compress_level=1, pnginfo=notes)
    assert buffer.getvalue() != unlike(name)
    return {"bytes": buffer.getvalue(), "path": None}


def pictured(name: str, label: str = "cat", problem: str = BOTH) -> dict[str, Any]:
    return {"problem": problem, "image": picture(name), "solution": label}


def source(rows: Sequence[dict[str, Any]], *, split: str = "train", place: str = "set", **data: Any) -> ExampleSource:
    table = Table(name=f"{place} ({split})", split=split, columns=tuple(rows[0]), rows=rows, root=None)
    return ExampleSource(table, range(len(rows)), DataConfig(image_size=8, check_candidates=False, **data))


def said(parts: Sequence[Part], **data: Any) -> list[str]:
    lines: list[str] = []
    survey(parts, DataConfig.model_validate(data), say=lines.append)
    return lines


def trained(rows: Sequence[dict[str, Any]]) -> list[Part]:
    return [Part(source=source(rows), trains=True)]


TWO_LABELS = {
    "same list": (pictured("a"), pictured("a", "dog")),
    "another file of the same pixels": (pictured("a"), pictured("a", "dog") | {"image": saved_again("a")}),
    "one list offers both": (
        pictured("a"),
        pictured("a", "dog", with_candidates("What is it?", ["dog", "eel"])),
    ),
    "open question": (pictured("a", problem="What is it?"), pictured("a", "dog", "What is it?")),
    "same options": (pictured("a", "A", "Which?\nA. left\nB. right"), pictured("a", "B", "Which?\nA. left\nB. right")),
}


@pytest.mark.parametrize("rows", TWO_LABELS.values(), ids=TWO_LABELS.keys())
def test_one_picture_under_two_labels_is_refused_by_name(rows: tuple[dict[str, Any], dict[str, Any]]) -> None:
    parts = trained([*rows, pictured("b", "dog")])
    with pytest.raises(DataError, match="1 picture has two labels") as caught:
        said(parts)
    assert "train/0" in str(caught.value.got) and "train/1" in str(caught.value.got)
    assert "check_copies" in caught.value.remedy
    assert [line for line in said(parts, check_copies=False) if "two labels" in line]


NO_CONTRADICTION = {
    "another question": (pictured("a"), pictured("a", "red", "What colour is it?")),
    "other options": (pictured("a", "A", "Which?\nA. left\nB. right"), pictured("a", "B", "Which?\nA. right\nB. left")),
    "no pictures": (pictured("a") | {"image": None}, pictured("a", "dog") | {"image": None}),
    "the same label": (pictured("a"), pictured("a", "cat", with_candidates("What is it?", ["eel", "cat"]))),
}


@pytest.mark.parametrize("rows", NO_CONTRADICTION.values(), ids=NO_CONTRADICTION.keys())
def test_another_question_may_have_another_answer(rows: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert not [line for line in said(trained([*rows, pictured("b", "dog")])) if "two labels" in line]


def test_lists_that_do_not_meet_are_doubtful_alone() -> None:
    """As a fine and a coarse list of the same picture, or the lists of base and new classes."""
    fine = pictured("a", "poodle", with_candidates("What is it?", ["poodle", "husky"]))
    (line,) = said(trained([pictured("a", "dog"), fine, pictured("b")]))
    assert line.startswith("warning: 1 picture has two labels that no list offers together: ")


def test_an_alias_is_no_second_label() -> None:
    rows = [pictured("a", "cat", "What?"), pictured("a", "kitty", "What?"), pictured("b", "dog", "What?")]
    with pytest.raises(DataError, match="two labels"):
        said(trained(rows))
    assert not [line for line in said(trained(rows), aliases={"cat": ["kitty"]}) if "two labels" in line]


def test_labels_are_told_apart_as_the_mode_does() -> None:
    rows = [pictured("a", "cat", "What?"), pictured("a", "Cat", "What?"), pictured("b", "dog", "What?")]
    with pytest.raises(DataError, match="two labels"):
        said(trained(rows))
    assert not [line for line in said(trained(rows), mode="think") if "two labels" in line]


def test_across_train_and_test_two_labels_are_an_error_and_within_test_a_warning() -> None:
    train = Part(source=source([pictured("a"), pictured("b", "dog")]), trains=True)
    test = Part(source=source([pictured("a", "dog"), pictured("c")], split="test"), trains=False)
    with pytest.raises(DataError, match="1 picture has two labels") as caught:
        said([train, test])
    assert "train/0" in str(caught.value.got) and "test/0" in str(caught.value.got)
    own = Part(source=source([pictured("c"), pictured("c", "dog")], split="test"), trains=False)
    assert [line for line in said([train, own]) if line.startswith("warning: 1 picture has two labels")]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from("abc"), st.sampled_from(["?", "??", "ab", "bc"]), st.integers(0, 2)
        ),
        min_size=2,
        max_size=9,
    )
)
def test_clashes_repeats_and_leaks_are_those_of_an_oracle(rows: list[tuple[int, str, str, int]]) -> None:
    """Rows of (picture, label, question, part) against every pair of rows."""
    lists = {"ab": with_candidates("q", "ab"), "bc": with_candidates("q", "bc")}
    made = [(pictured(f"p{number}", label, lists.get(ask, ask)), part) for number, label, ask, part in rows]
    own = [[line for line, part in made if part == number] for number in range(3)]
    parts = [Part(source=source(lines, split=f"s{n}"), trains=n == 0) for n, lines in enumerate(own) if lines]
    found = Copies(parts, mode="no_think", aliases={})

    flat = [(n, i, o) for n, part in enumerate(parts) for i, o in enumerate(part.source.outlines)]
    stem = {o.problem: "list" if read_list(o.problem) else o.problem for _, _, o in flat}
    pairs = [(x, y) for x in flat for y in flat if x[:2] < y[:2] and x[2].picture == y[2].picture]
    same = [(x, y) for x, y in pairs if stem[x[2].problem] == stem[y[2].problem]]
    clashing = {
        (x[2].picture, stem[x[2].problem], frozenset((x[2].label, y[2].label)))
        for x, y in same
        if x[2].label != y[2].label
    }
    clashes = list(found.find_clashes())
    seen = [(found.outline(c.one), found.outline(c.other)) for c in clashes]
    assert {(x.picture, stem[x.problem], frozenset((x.label, y.label))) for x, y in seen} == clashing
    assert len(seen) == len(clashing)

    def denied(x: Any, y: Any) -> bool:
        offers = [read_list(o.problem) for o in (x, y)]
        return offers[0] is None or y.label in offers[0] or x.label in (offers[1] or ())

    for clash, (x, y) in zip(clashes, seen, strict=True):
        alike = [
            (p[2], q[2])
            for p, q in same
            if p[2].picture == x.picture
            and stem[p[2].problem] == stem[x.problem]
            and {p[2].label, q[2].label} == {x.label, y.label}
        ]
        assert clash.offered == any(denied(p, q) for p, q in alike)
    for number in range(len(parts)):
        again = {y[1] for x, y in same if x[0] == y[0] == number and x[2].label == y[2].label}
        assert {ref.row for ref, _ in found.find_repeats(number)} == again
        if number:
            leaked = {y[1] for x, y in pairs if x[0] == 0 and y[0] == number}
            assert {ref.row for ref, _ in found.find_shared(number, [0])} == leaked


def test_rows_of_test_that_are_trained_on_are_counted() -> None:
    train = source([pictured("a"), pictured("b", "dog"), pictured("b", "dog")])
    test = source(
        [pictured("a"), pictured("c", "dog"), pictured("b", "dog") | {"image": saved_again("b")}], split="test"
    )
    lines = said(divide_for_run(train, {"held-out": test, "again": test}))
    assert lines == [
        "note: 1 of 3 rows of set (train) repeat another: train/2 = train/1",
        "warning: 2 of 3 rows of set (test) show pictures that are trained on: test/0 = train/0; test/2 = train/1",
    ]


def test_a_subset_of_train_is_no_leak() -> None:
    train, base = (
        source([pictured("a"), pictured("b", "dog")]),
        source([pictured("a"), pictured("b", "dog")], split="base_train"),
    )
    assert said(divide_for_run(train, {"base": base, "train": train})) == []


def test_rows_without_a_picture_are_counted() -> None:
    rows = [
        pictured("a"),
        pictured("b", "dog") | {"image": None},
        pictured("c") | {"image": {"bytes": None, "path": None}},
    ]
    assert said(trained(rows)) == ["warning: 2 of 3 rows of set (train) have no picture: train/1, train/2"]


def test_a_column_of_nulls_is_refused_and_a_set_without_the_column_is_text_only() -> None:
    rows = [pictured("a") | {"image": None}, pictured("b", "dog") | {"image": None}]
    with pytest.raises(DataError, match="none of the 2 rows") as caught:
        source(rows)
    assert "drop the column" in caught.value.remedy
    assert said(trained([{key: line[key] for key in ("problem", "solution")} for line in rows])) == []


def test_a_single_class_is_refused_for_training() -> None:
    alone = with_candidates("What is it?", ["cat"])
    with pytest.raises(DataError, match="one class") as caught:
        said(trained([pictured("a", problem=alone), pictured("b", problem=alone)]))
    assert "'cat'" in str(caught.value.got)
    with pytest.raises(DataError, match="one class"):
        said(trained([pictured("a", problem="What?"), pictured("b", problem="What?")]))
    offered = "warning: all rows of set (train) have one label, 'cat', though questions offer others"
    assert said(trained([pictured("a"), pictured("b")])) == [offered]
    test = Part(source=source([pictured("z", problem=alone)], split="test"), trains=False)
    assert said([*trained([pictured("a"), pictured("b", "dog")]), test]) == [
        "warning: all rows of set (test) have one label, 'cat'"
    ]


def copied(root: Path, names: Sequence[tuple[str, str]]) -> Path:
    for one, other in names:
        shutil.copy(root / one, root / other)
    return root


def test_the_linter_sees_splits_and_places_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(image_folder(tmp_path / "set", {"train/cat": 3, "train/dog": 3, "test/cat": 1, "test/dog": 1}))
    copied(root, [("train/cat/0.png", "test/cat/9.png")])
    assert lint.main([str(root)]) == 0
    assert "warning: 1 of 3 rows of" in capsys.readouterr().out
    assert lint.main([f"{root}@test", f"{root}@train"]) == 0
    assert "show pictures that are trained on: test/1 (test/cat/9.png) = train/0" in capsys.readouterr().out
    assert lint.main([f"{root}@test"]) == 0
    assert "trained on" not in capsys.readouterr().out
    train = parquet(tmp_path / "train.parquet", [pictured("a"), pictured("b", "dog")])
    test = parquet(tmp_path / "test.parquet", [pictured("a"), pictured("c", "dog")])
    assert lint.main([train, test]) == 0
    assert "warning: 1 of 2 rows of" in capsys.readouterr().out
    copied(root, [("train/cat/0.png", "train/dog/9.png")])
    assert lint.main([str(root)]) == 2
    error = capsys.readouterr().err
    assert "'cat' in train/0 (train/cat/0.png)" in error and "train/dog/9.png" in error


def test_the_linter_refuses_one_class_and_warns_of_it_in_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lint.main([image_folder(tmp_path / "one", {"cat": 3})]) == 2
    assert "one class" in capsys.readouterr().err
    assert lint.main([image_folder(tmp_path / "two", {"train/cat": 2, "train/dog": 2, "test/cat": 1})]) == 0
    assert "have one label, 'cat', though questions offer others" in capsys.readouterr().out


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_held_out_share_has_no_copy_of_a_training_row(tmp_path: Path, fraction: float) -> None:
    root = Path(image_folder(tmp_path, {"cat": 12, "dog": 12}))
    copied(root, [(f"{label}/{n}.png", f"{label}/{n} (1).png") for label in ("cat", "dog") for n in range(0, 12, 2)])
    train, held_out = load_both(DataConfig(path=str(root), image_size=8, eval_split=None, eval_fraction=fraction))
    assert held_out is not None
    assert len(train) + len(held_out) == 36
    assert not {one.picture for one in train.outlines} & {one.picture for one in held_out.outlines}
    assert [train[i].id for i in range(len(train))] == [one.id for one in train.outlines]
    alone = load(DataConfig(path=str(root), image_size=8, eval_split=None, eval_fraction=fraction), split="train")
    assert alone.outlines == train.outlines


def build_set(source: Path, out: Path, *words: str) -> int:
    return builder.main([str(source), "--out", str(out), "--shots", "all", *words])


def test_a_list_with_every_line_twice_is_built_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(tmp_path / "p", {"cat": 4, "dog": 4})
    lines = [f"p/{label}/{n}.png,{label}" for label in ("cat", "dog") for n in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines, *(f"./{line}" for line in lines)]))
    assert build_set(tmp_path / "list.csv", tmp_path / "set") == 0
    out = capsys.readouterr().out
    assert "note: 8 of 16 entries" in out and "name a picture again: merged" in out
    assert "train           6 rows" in out and "test            2 rows" in out


def test_the_builder_keeps_copies_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(image_folder(tmp_path / "p", {"cat": 10, "dog": 10}))
    copied(root, [(f"{label}/{n}.png", f"{label}/{n}b.png") for label in ("cat", "dog") for n in range(10)])
    assert build_set(root, tmp_path / "set", "--test-fraction", "0.3") == 0
    assert "pictures of train are copies of another" in capsys.readouterr().out
    data = DataConfig(path=str(tmp_path / "set"), image_size=8, eval_fraction=0.0)
    train, test = load_both(data)
    assert test is not None and len(test) == 12
    assert said(divide_for_run(train, {"held-out": test}))[-1].startswith("note: ")


def test_the_builder_warns_of_copies_and_refuses_two_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(image_folder(tmp_path / "p", {"train/cat": 3, "train/dog": 3, "test/cat": 2, "test/dog": 2}))
    copied(root, [("train/cat/0.png", "test/cat/9.png")])
    assert build_set(root, tmp_path / "one") == 0
    assert (
        "warning: 1 of 5 pictures of test are in train too: test/cat/9.png = train/cat/0.png" in capsys.readouterr().out
    )
    copied(root, [("test/cat/0.png", "test/dog/9.png")])
    assert build_set(root, tmp_path / "two") == 0  # nothing learns from test
    assert "warning: pictures that stand under two labels (1)" in capsys.readouterr().out
    copied(root, [("train/cat/0.png", "train/dog/9.png")])
    assert build_set(root, tmp_path / "three") == 2
    assert "stand under two labels" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()
    assert build_set(root, tmp_path / "three", "--keep-two-labels") == 0
    assert "warning: pictures that stand" in capsys.readouterr().out


def test_the_builder_refuses_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_set(Path(image_folder(tmp_path / "p", {"cat": 3})), tmp_path / "set") == 2
    assert "would have one class" in capsys.readouterr().err and not (tmp_path / "set").exists()
