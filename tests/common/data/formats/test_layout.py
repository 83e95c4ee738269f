"""Which folders are classes and which are splits: a table of layouts as people have them, and random ones."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.build.sources import open_source
from common.data.formats.layout import Layout, read_layout
from common.data.formats.tree import classes, is_document, is_litter, read_tree
from common.errors import DataError


def expand(pattern: str) -> list[str]:
    """`{a,b}/1.jpg` is a/1.jpg and b/1.jpg."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [part.split(",") if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def lay_out(root: Path, patterns: str) -> Path:
    for path in (root / path for pattern in patterns.split() for path in expand(pattern)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "-":  # an empty folder
            continue
        path.write_bytes(b"x")
    return root


def write(root: Path, files: Iterable[str]) -> Path:
    for folder in {str(Path(name).parent) for name in files}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in files:
        (root / name).touch()
    return root


def rows(layout: Layout, root: Path) -> dict[str, list[str]]:
    """The files of each split and class, as `split:label` -> paths."""
    return {
        f"{name}:{label}": [str(file.relative_to(root)) for file in folder.all_files()]
        for name, split in layout.splits.items()
        for label, folder in classes(split).items()
    }


def counted(layout: Layout, root: Path) -> dict[str, int]:
    return {name: len(files) for name, files in rows(layout, root).items()}


TWO = {"train:a": 1, "train:b": 1, "test:a": 1, "test:b": 1}


def named(train: str, test: str) -> dict[str, int]:
    return {name.replace("train:", f"{train}:").replace("test:", f"{test}:"): 1 for name in TWO}


READ: dict[str, tuple[dict[str, int], list[str]]] = {
    "Training/{a,b}/1.jpg Testing/{a,b}/1.jpg": (named("Training", "Testing"), []),
    "TRAIN/{a,b}/1.jpg test/{a,b}/1.jpg": (named("TRAIN", "test"), []),
    "train/{a,b}/1.jpg Test/{a,b}/1.jpg": (named("train", "Test"), []),
    "training_set/{a,b}/1.jpg test-set/{a,b}/1.jpg": (named("training_set", "test-set"), []),
    "train_images/{a,b}/1.jpg images_test/{a,b}/1.jpg": (named("train_images", "images_test"), []),
    "train2017/{a,b}/1.jpg val2017/{a,b}/1.jpg": (named("train2017", "val2017"), []),
    "cars_train/{a,b}/1.jpg cars_test/{a,b}/1.jpg": (named("cars_train", "cars_test"), []),
    # Kaggle's Intel Image Classification: each split is wrapped in itself, and seg_pred has no classes.
    "seg_train/seg_train/{a,b}/1.jpg seg_test/seg_test/{a,b}/1.jpg seg_pred/seg_pred/{1,2}.jpg": (
        named("seg_train", "seg_test"),
        ["entered (2): seg_test/seg_test, seg_train/seg_train", "hold no class of them (1): seg_pred (2 files)"],
    ),
    "train/images/{a,b}/1.jpg test/images/{a,b}/1.jpg train/l.csv": (
        TWO,
        ["entered (2): test/images, train/images", "files beside the folders of classes are left out (1): train/l.csv"],
    ),
    # Classes that are called like splits.
    "{bus,car,train}/1.jpg": ({":bus": 1, ":car": 1, ":train": 1}, []),
    "{bus,car,train}/images/1.jpg": ({":bus": 1, ":car": 1, ":train": 1}, ["no classes of their own (3): bus/images"]),
    "{bus,car,train}/2019/1.jpg": ({":bus": 1, ":car": 1, ":train": 1}, ["no classes of their own (3): bus/2019"]),
    "{beaker,test_tube}/1.jpg": ({":beaker": 1, ":test_tube": 1}, []),
    "{bullet_train,test_tube}/1.jpg": ({":bullet_train": 1, ":test_tube": 1}, []),
    "beaker/1.jpg test_tube/{x,y}/1.jpg": ({":beaker": 1, ":test_tube": 2}, ["(2): test_tube/x, test_tube/y"]),
    "{bus,cars_train,cars_test}/1.jpg": ({":bus": 1, ":cars_train": 1, ":cars_test": 1}, []),
    "{steam_train,bullet_train,crash_test,test_tube}/1.jpg": (
        {":steam_train": 1, ":bullet_train": 1, ":crash_test": 1, ":test_tube": 1},
        [],
    ),
    "{valid,invalid}/1.jpg": ({":valid": 1, ":invalid": 1}, []),
    # Beside the splits.
    "train/{a,b}/1.jpg holdout/{a,b}/1.jpg": ({"train:a": 1, "train:b": 1, "holdout:a": 1, "holdout:b": 1}, []),
    "train/{a,b}/1.jpg holdout/1.jpg": ({"train:a": 1, "train:b": 1}, ["hold no class of them (1): holdout (1 file)"]),
    "train/{a,b}/1.jpg test/{1,2}.jpg": ({"train:a": 1, "train:b": 1}, ["hold no class of them (1): test (2 files)"]),
    "train/{a,b}/1.jpg xml/1.xml": ({"train:a": 1, "train:b": 1}, ["folders without a picture are left out (1): xml"]),
    "train/{a,b}/1.jpg train/2.jpg": ({"train:a": 1, "train:b": 1}, ["left out (1): train/2.jpg"]),
    # Pictures without classes in a split, as tiny-imagenet and Keras's tutorials have them.
    "train/{a,b}/images/1.jpg val/images/{1,2}.jpg val/val_annotations.txt test/test/1.jpg": (
        {"train:a": 1, "train:b": 1},
        ["hold no class of them (2): test (1 file), val (3 files)", "no classes of their own (2): train/a/images"],
    ),
    # Wrapped.
    "PetImages/{a,b}/1.jpg readme[1].txt": ({":a": 1, ":b": 1}, ["(1): PetImages", "(1): readme[1].txt"]),
    "x/y/{a,b}/1.jpg docs/1.pdf": ({":a": 1, ":b": 1}, ["(1): x/y", "(1): docs (1 file)"]),
    "x/train/{a,b}/1.jpg x/test/{a,b}/1.jpg __MACOSX/x/train/a/._1.jpg": (TWO, ["(1): x", "(1): __MACOSX"]),
    "images/{train,test}/{a,b}/1.jpg": (TWO, ["(1): images"]),
    "test/{train,test}/{a,b}/1.jpg": (TWO, ["entered (1): test"]),
    # Left out.
    "{a,b}/1.jpg c/- README.md labels.txt": (
        {":a": 1, ":b": 1},
        ["(2): README.md, labels.txt", "folders without a picture are left out (1): c"],
    ),
    "{a,b}/1.jpg .DS_Store a/Thumbs.db b/._1.jpg @eaDir/1.jpg b/desktop.ini": (
        {":a": 1, ":b": 1},
        ["hidden files and those of systems are left out (5): .DS_Store, @eaDir, a/Thumbs.db and 2 more"],
    ),
    "train/{a,b}/1.jpg test/a/1.jpg test/b/-": ({"train:a": 1, "train:b": 1, "test:a": 1}, ["left out (1): test/b"]),
    "train/{0,1}/1.jpg test/0/1.jpg": ({"train:0": 1, "train:1": 1, "test:0": 1}, []),
    "train/{class1,class2}/1.jpg test/class1/{x,y}/1.jpg": (
        {"train:class1": 1, "train:class2": 1, "test:class1": 2},
        ["no classes of their own (2): test/class1/x, test/class1/y"],
    ),
    "{a,b}/1.jpg a/x/2.jpg a/x/y/3.jpg": ({":a": 3, ":b": 1}, ["no classes of their own (1): a/x"]),
    # Names that say a split only together, or glued.
    "traindir/{a,b}/1.jpg testdir/{a,b}/1.jpg": (named("traindir", "testdir"), []),
    "trains/{a,b}/1.jpg tests/{a,b}/1.jpg": (named("trains", "tests"), []),
    "tr/{a,b}/1.jpg te/{a,b}/1.jpg": (named("tr", "te"), []),
    "trn/{a,b}/1.jpg tst/{a,b}/1.jpg": (named("trn", "tst"), []),
    "train/{a,b}/1.jpg validate/{a,b}/1.jpg": (named("train", "validate"), []),
    "{planes,trains}/{x,y}{1,2}/1.jpg planes/2.jpg": ({":planes": 5, ":trains": 4}, ["(8): planes/x1, planes/x2"]),
    "{planes,trains,tests}/1.jpg": ({":planes": 1, ":trains": 1, ":tests": 1}, []),
    "{en,te,tr}/1.jpg": ({":en": 1, ":te": 1, ":tr": 1}, []),
    # Folders that each class has, and that are none.
    "{a,b}/{images,masks}/1.jpg": (
        {":a": 2, ":b": 2},
        ["no classes of their own (4): a/images", "every class folder holds the same folders"],
    ),
    "{bus,car,train}/{2019,2020}/1.jpg": (
        {":bus": 2, ":car": 2, ":train": 2},
        ["no classes of their own (6): bus/2019", "every class folder holds the same folders"],
    ),
    "{bus,car}/{front,side}/1.jpg bus/2.jpg": ({":bus": 3, ":car": 2}, ["no classes of their own (4): bus/front"]),
    "{bus,car}/more/1.jpg": ({":bus": 1, ":car": 1}, ["no classes of their own (2): bus/more, car/more"]),
    "train/{day,night}/{a,b}/1.jpg": (
        {"train:day": 2, "train:night": 2},
        ["no classes of their own (4): train/day/a", "every class folder holds the same folders"],
    ),
}


@pytest.mark.parametrize("patterns", READ)
def test_a_layout_is_read_as_it_is_meant(tmp_path: Path, patterns: str) -> None:
    wanted, notes = READ[patterns]
    layout = read_layout(read_tree(lay_out(tmp_path, patterns)))
    assert counted(layout, tmp_path) == wanted
    assert len(layout.notes) == len(notes), layout.notes
    for note in notes:
        assert any(note in line for line in layout.notes), (note, layout.notes)


REFUSED = {
    "Train/{a,b}/1.jpg training/{a,b}/1.jpg": ("more than once", "Train, training"),
    "train/{a,b}/1.jpg val/{a,b}/1.jpg Validation/{a,b}/1.jpg": ("more than once", "Validation, val"),
    "train/{1,2}.jpg test/1.jpg": ("pictures without class folders", "test, train"),
    "train/{1,2}.jpg": ("pictures without class folders", "train"),
    "cars_train/{1,2}.jpg cars_test/1.jpg": ("pictures without class folders", "cars_test, cars_train"),
    # The split and the class in one name, as in CycleGAN's sets.
    "{cat,dog}_{train,test}/1.jpg": ("pictures without class folders", "cat_test, cat_train, dog_test, dog_train"),
    "{train,test}_{cat,dog}/1.jpg": ("pictures without class folders", "test_cat, test_dog, train_cat, train_dog"),
    "{train,test}{A,B}/1.jpg": ("pictures without class folders", "testA, testB, trainA, trainB"),
    "x/{Train,Val}-{A,B}/1.jpg": ("pictures without class folders", "Train-A, Train-B, Val-A, Val-B"),
    "{cat,dog}_{train,test}/1.jpg birds/1.jpg": ("pictures without class folders", "cat_test"),
    "cat_{train,test}/1.jpg dog_train/1.jpg": ("pictures without class folders", "cat_test, cat_train, dog_train"),
    "train/1.jpg test/{a,b}/1.jpg": ("pictures without class folders", "train"),
    "{a,b}/{train,test}/1.jpg": ("splits inside its class folders", r"folders in a (2): test, train"),
    "data/{train,test}/{a,b}/1.jpg previews/{1,2}.png": ("beside one that holds splits", "folders in data (2)"),
    "fold_{1,2}/{train,test}/{a,b}/1.jpg": ("beside one that holds splits", "folders in fold_1 (2): test, train"),
    "fold{1,2,3}/{cat,dog}/1.jpg": ("cannot be told", "the same folders (2): cat, dog; in fold1, fold2, fold3"),
    "fold{1,2}/images/{cat,dog}/1.jpg": ("cannot be told", "the same folders (2): cat, dog; in fold1, fold2"),
    "{images,masks}/{cat,dog}/1.jpg": ("cannot be told", "the same folders (2): cat, dog; in images, masks"),
    "x/{color,grayscale}/{cat,dog}/1.jpg color/README.md": ("cannot be told", "cat, dog; in color, grayscale"),
    "{en,te,tr}/{cat,dog}/1.jpg": ("cannot be told", "the same folders (2): cat, dog; in en, te, tr"),
    "{tr,te}/1.jpg": ("pictures without class folders", "te, tr"),
    # Kaggle's flowers: the whole set again in a folder beside its classes.
    "{daisy,rose}/1.jpg flowers/{daisy,rose}/1.jpg": (
        "once more in one of them",
        "folders in flowers (2): daisy, rose",
    ),
    "images/train/{1,2}.jpg images/val/1.jpg labels/train/{1,2}.txt": ("pictures without class folders", "train, val"),
    "train/images/{1,2}.jpg train/labels/{1,2}.txt": ("pictures without class folders", "train"),
    "{cat,dog}/1.jpg test/{cat,dog}/1.jpg": ("class folders beside test", "cat, dog"),
    "{cat,dog}/1.jpg test/cat/1.jpg": ("class folders beside test", "cat, dog"),
    "{cat,dog}/1.jpg train/{cat,dog}/1.jpg": ("class folders beside train", "cat, dog"),
    "train/cat/1.jpg unlabeled/1.jpg": ("class folders beside train", "unlabeled"),
    "train/cat/1.jpg holdout/cat/1.jpg": ("class folders beside train", "holdout"),
    "control/{p1,p2}/1.jpg test/{p3,p4}/1.jpg": ("class folders beside test", "control"),
    "1.jpg labels.csv": ("holds no data set", "1.jpg"),
    "images/{1,2}.jpg labels.csv": ("pictures without class folders", "images"),
    ".git/1.jpg": ("holds no data set", "empty"),
    "a/- b/-": ("holds no data set", "a, b"),
}


@pytest.mark.parametrize("patterns", REFUSED)
def test_a_layout_that_may_mean_two_things_is_refused_by_name(tmp_path: Path, patterns: str) -> None:
    what, got = REFUSED[patterns]
    with pytest.raises(DataError, match=what) as caught:
        read_layout(read_tree(lay_out(tmp_path, patterns)))
    assert got in str(caught.value.got) and caught.value.remedy


def test_the_folder_that_holds_the_splits_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_layout(read_tree(lay_out(tmp_path, "data/{train,test}/{a,b}/1.jpg previews/1.png")))
    assert caught.value.remedy.endswith(f"be {tmp_path / 'data'}")


@pytest.mark.parametrize("patterns", ["1.jpg labels.csv", "images/1.jpg labels.csv", "{train,test}/1.jpg labels.csv"])
def test_a_list_of_labels_beside_the_pictures_is_pointed_out(tmp_path: Path, patterns: str) -> None:
    with pytest.raises(DataError, match=r"holds no data set|without class folders") as caught:
        read_layout(read_tree(lay_out(tmp_path, patterns)))
    assert f"common.data.build {tmp_path / 'labels.csv'}" in caught.value.remedy


def test_splits_that_are_not_found_by_their_meaning_are_offered(tmp_path: Path) -> None:
    lay_out(tmp_path, "{train,Test,holdout,train2017,base_test,cars_test}/{a,b}/1.jpg test/-")
    assert sorted(read_layout(read_tree(tmp_path)).offered) == ["base_test", "cars_test", "holdout", "train2017"]


def test_classes_that_cannot_be_learned_are_named(tmp_path: Path) -> None:
    lay_out(tmp_path, "Train/{a,b}/1.jpg Test/{a,c}/1.jpg")
    assert read_layout(read_tree(tmp_path)).untrained == ["Test/c"]


SPACES = ["", " ", "  ", "\t", "\u00a0"]


@pytest.mark.parametrize("before", SPACES)
@pytest.mark.parametrize("after", SPACES)
def test_white_space_around_a_class_is_no_part_of_it(tmp_path: Path, before: str, after: str) -> None:
    write(tmp_path, [f"train/{before}cat{after}/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg"])
    layout = read_layout(read_tree(tmp_path))
    assert layout.labels == ["cat", "dog"] and layout.untrained == []
    assert counted(layout, tmp_path) == {"train:cat": 1, "train:dog": 1, "test:cat": 1}
    assert {one.label for one in open_source(tmp_path).train} == {"cat", "dog"}
    if before or after:
        write(tmp_path, ["train/cat/2.jpg"])
        for read in (lambda: read_layout(read_tree(tmp_path)), lambda: open_source(tmp_path)):
            with pytest.raises(DataError, match="differ by white space alone") as caught:
                read()
            assert repr(f"train/{before}cat{after}") in str(caught.value.got) and "'train/cat'" in str(caught.value.got)


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [" /1.jpg", "dog/1.jpg"])
    with pytest.raises(DataError, match="whose name is white space"):
        read_layout(read_tree(tmp_path))


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=True)


def test_links_to_folders_inside_are_followed(tmp_path: Path) -> None:
    lay_out(tmp_path, "train/{a,b}/1.jpg pool/more/{2,3}.jpg test/a/1.jpg")
    link(tmp_path / "train/a/more", tmp_path / "pool/more")  # inside a class
    link(tmp_path / "test/b", tmp_path / "pool/more")  # a class
    layout = read_layout(read_tree(tmp_path))
    assert counted(layout, tmp_path) == {"train:a": 3, "train:b": 1, "test:a": 1, "test:b": 2}


def test_a_linked_split_and_a_linked_place_are_read(tmp_path: Path) -> None:
    lay_out(tmp_path / "set", "store/{a,b}/1.jpg test/{a,b}/1.jpg")
    link(tmp_path / "set/train", Path("store"))
    (tmp_path / "here").symlink_to(tmp_path / "set")
    layout = read_layout(read_tree(tmp_path / "here"))
    assert counted(layout, tmp_path / "here") == TWO | {"store:a": 1, "store:b": 1}


def test_links_that_leave_are_refused_by_name(tmp_path: Path) -> None:
    lay_out(tmp_path, "set/{a,b}/1.jpg elsewhere/1.jpg")
    link(tmp_path / "set/a/more", tmp_path / "elsewhere")
    with pytest.raises(DataError, match="links to folders that do not lie inside") as caught:
        read_layout(read_tree(tmp_path / "set"))
    assert "a/more" in str(caught.value.got)


def test_link_loops_end_and_are_named(tmp_path: Path) -> None:
    lay_out(tmp_path, "set/{a,b}/1.jpg")
    for name, target in {
        "a/self": "../a",
        "a/up": "..",
        "b/root": "../..",
        "b/other": "../a",
        "a/other": "../b",
    }.items():
        link(tmp_path / "set" / name, Path(target))
    begin = time.monotonic()
    layout = read_layout(read_tree(tmp_path / "set"))
    assert time.monotonic() - begin < 2
    (note,) = (note for note in layout.notes if note.startswith("links"))
    assert "a/self" in note
    assert all(len(files) == len(set(files)) for files in rows(layout, tmp_path / "set").values())


def test_many_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(12)]
    for name in names:
        lay_out(tmp_path, f"{name}/1.jpg")
        for other in names:
            link(tmp_path / name / f"to_{other}", Path("..") / other)
    begin = time.monotonic()
    assert len(read_layout(read_tree(tmp_path)).labels) == 12
    assert time.monotonic() - begin < 5


def test_a_link_to_nowhere_is_left_to_be_refused_as_a_picture(tmp_path: Path) -> None:
    lay_out(tmp_path, "{a,b}/1.jpg")
    (tmp_path / "a/2.jpg").symlink_to("nowhere")
    (tmp_path / "a/3.jpg").symlink_to("3.jpg")
    assert rows(read_layout(read_tree(tmp_path)), tmp_path)[":a"] == ["a/1.jpg", "a/2.jpg", "a/3.jpg"]


def test_folders_nested_a_thousand_deep_are_walked() -> None:
    with quick_folder() as root:
        deep = [root / f"a{'/d' * depth}" for depth in range(1500)]
        for folder in [root / "b", *deep]:
            folder.mkdir()
        write(root, ["b/1.jpg", "a/1.jpg", str(deep[-1].relative_to(root) / "2.jpg")])
        layout = read_layout(read_tree(root))
        (deep[-1] / "2.jpg").unlink()
        for folder in reversed(deep[1:]):  # what removes temporary folders goes less deep
            folder.rmdir()
    assert [len(folder.files) for folder in layout.splits[""].walk() if folder.files] == [1, 1, 1]


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A temporary folder in memory, where there is such a place: some disks take seconds for a thousand folders."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


# Random layouts that were meant in one way. The truth is known as they are made.

CLASSES = ["bus", "car", "0", "Great Dane", "café", "n01440764", "images", "A.b"]
SPELLED = ["{}", "{}_set", "images-{}", "seg_{}", "{}2017", "{}Images"]
HIDDEN = [".DS_Store", "Thumbs.db", "desktop.ini", "._1.jpg", "__MACOSX/1.jpg", "@eaDir/2.jpg", ".git/HEAD"]


@st.composite
def meant_layouts(draw: st.DrawFn) -> tuple[set[str], dict[str, set[tuple[str, str]]], Counter[str]]:
    """Files, the (path, label) of each split by its meaning, and how many things each note should count."""
    wrapper = draw(st.sampled_from(["", "", "PetImages/", "archive/my data/"]))
    labels = draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True))
    folders = {"train": ""}
    if draw(st.booleans()):
        train, test = draw(st.sampled_from(["train", "Train", "TRAINING"])), draw(st.sampled_from(["test", "Testing"]))
        folders = {"train": draw(st.sampled_from(SPELLED)).format(train) + "/"}
        folders |= {"test": draw(st.sampled_from(SPELLED)).format(test) + "/"}
        folders |= {"holdout": "holdout/"} if draw(st.booleans()) else {}
    files: set[str] = set()
    meant: dict[str, set[tuple[str, str]]] = {}
    for split, folder in folders.items():
        paths = [(f"{wrapper}{folder}{label}/{name}", label) for label in labels for name in draw(PICTURES)]
        first = [(f"{wrapper}{folder}{label}/first.jpg", label) for label in labels[: 2 if split != "train" else None]]
        meant[split] = {*paths, *first}
        files |= {path for path, _ in meant[split]}
    extra: Counter[str] = Counter()
    holders = {"", wrapper, *(wrapper + folder for folder in folders.values())}
    for holder, name in draw(st.sets(st.tuples(st.sampled_from(sorted(holders)), st.sampled_from(HIDDEN)))):
        files.add(holder + name)
        extra["hidden"] += 1
    for holder in draw(st.sets(st.sampled_from(sorted(holders)))):
        files.add(f"{holder}README.md")
        extra["files beside"] += 1
    if "test" in folders and draw(st.booleans()):
        files |= {f"{wrapper}unlabeled/{number}.jpg" for number in range(3)}
        extra["folders beside"] += 1
    extra["folders around"] += wrapper != ""
    return files, meant, extra


PICTURES = st.sets(st.sampled_from(["1.jpg", "2.PNG", "more/3.jpeg", "4", "more/less/5.webp"]), max_size=3)


@settings(deadline=None, max_examples=50)
@given(meant_layouts())
def test_whatever_lies_around_each_picture_has_its_split_and_its_label(
    made: tuple[set[str], dict[str, set[tuple[str, str]]], Counter[str]],
) -> None:
    files, meant, extra = made
    with quick_folder() as root:
        write(root, files)
        layout = read_layout(read_tree(root))
        for asked, wanted in meant.items():
            (found,) = [name for name in layout.splits if name.casefold().find(asked) >= 0 or name == ""]
            split = layout.splits[found]
            got = [(str(f.relative_to(root)), label) for label, c in classes(split).items() for f in c.all_files()]
            assert len(got) == len(wanted) and set(got) == wanted
        assert len(layout.splits) == len(meant)
        for kind in ("hidden", "files beside", "folders beside", "folders around"):
            assert said(layout, kind) == extra[kind], (kind, layout.notes)


def said(layout: Layout, kind: str) -> int:
    """How many things the note of a kind counts."""
    counts = [re.search(r"\((\d+)\):", note) for note in layout.notes if note.startswith(kind)]
    return sum(int(count[1]) for count in counts if count)


# Random trees that mean nothing: whatever is read, no file is lost and none is in two places.

NAMES = ["train", "Testing", "val", "cars_test", "holdout", "bus", "car", "images", "zip", ".hidden", "__MACOSX"]
LEAVES = ["1.jpg", "2.png", "3", "README.md", "labels.csv", "Thumbs.db", ".x.jpg"]
TREES = st.sets(
    st.tuples(st.lists(st.sampled_from(NAMES), max_size=4), st.sampled_from(LEAVES)).map(
        lambda t: "/".join([*t[0], t[1]])
    ),
    min_size=1,
    max_size=14,
)


@settings(deadline=None, max_examples=100)
@given(TREES)
def test_no_file_vanishes(files: set[str]) -> None:
    """Each file is in one row, with the name of a folder above it as its label; or one note counts it."""
    with quick_folder() as root:
        write(root, files)
        try:
            layout = read_layout(read_tree(root))
        except DataError:
            return
        bases = {name: str(split.path.relative_to(root)) for name, split in layout.splits.items()}
        read: Counter[str] = Counter()
        for name, found in rows(layout, root).items():
            split, _, label = name.partition(":")
            for file in found:
                read[file] += 1
                assert str(Path(file).relative_to(bases[split])).split("/")[0] == label
        assert set(read.values()) <= {1}
        account_for(files - set(read), layout, [Path(base) for base in bases.values()])


def account_for(left: set[str], layout: Layout, bases: list[Path]) -> None:
    """Compare the files that are in no row with what the notes count, by the rule in words."""
    holders = {above for base in bases for above in (base, *base.parents)}
    hidden: set[Path] = set()
    loose: set[Path] = set()
    asides: set[Path] = set()
    bare: set[Path] = set()
    for file in map(Path, left):
        parts = file.parts
        litter = [number for number, part in enumerate(parts) if is_litter(part)]
        child = next(Path(*parts[: n + 1]) for n in range(len(parts)) if Path(*parts[: n + 1]) not in holders)
        if litter:
            hidden.add(Path(*parts[: litter[0] + 1]))
        elif child == file:
            loose.add(file)
        else:
            pictures = [name for name in left if Path(name).is_relative_to(child) and not is_document(Path(name).name)]
            seen = [name for name in pictures if not any(map(is_litter, Path(name).parts))]
            (asides if seen else bare).add(child)
    assert said(layout, "hidden") == len(hidden), layout.notes
    assert said(layout, "files beside") == len(loose), layout.notes
    assert said(layout, "folders beside") == len(asides), layout.notes
    assert said(layout, "folders without") >= len(bare), layout.notes  # and those that hold hidden files alone


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "{a,b}/1.jpg")

    def refuse(folder: Path) -> object:
        if folder.name == "b":
            raise PermissionError(13, "Permission denied")
        return os.scandir(folder)

    monkeypatch.setattr("common.data.formats.tree.os", SimpleNamespace(path=os.path, scandir=refuse))
    with pytest.raises(DataError, match=r"folder .*b cannot be listed") as caught:
        read_tree(tmp_path)
    assert "Permission denied" in str(caught.value.got)
