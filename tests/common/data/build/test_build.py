"""From pictures to a set on disk: the same bytes every time, read back by Rollcall and by `datasets`, or nothing."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common.config.schema import DataConfig
from common.data.build.__main__ import main
from common.data.image import read_pixels
from common.data.lint import main as lint_main
from common.data.row import bare_label
from common.data.sources import load, load_held_out
from common.labels.candidates import candidates
from tests.helpers.makers import encoded, image_folder, noise, parquet, row, unlike
from tests.helpers.sets import TEXTURES, write_digits, write_mnist, write_textures

SPLITS = ("train", "test", "base_train", "base_test", "new_test")


def made(source: Path, out: Path, *words: str) -> Path:
    """The folder of a set that was built."""
    assert main([str(source), "--out", str(out), *words]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], source: Path, out: Path, *words: str) -> str:
    """What is printed when nothing is built."""
    before = {*out.parent.glob("*")}
    assert main([str(source), "--out", str(out), *words]) == 2
    assert {*out.parent.glob("*")} == before, "nothing is left behind"
    return capsys.readouterr().err


def front_matter(folder: Path) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    return found


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("digits")
    return made(write_digits(place / "digits"), place / "set", "--shots", "4", "--base-new")


def test_digits_become_a_few_shot_set_with_halves(digits: Path) -> None:
    assert {file.name for file in digits.iterdir()} == {
        "README.md",
        *(f"{split}-00000-of-00001.parquet" for split in SPLITS),
    }
    data = DataConfig(path=str(digits), image_size=None)
    sources = {split: load(data, split=split) for split in SPLITS}
    assert {name: len(source) for name, source in sources.items()} == dict(
        zip(SPLITS, (40, 100, 20, 50, 50), strict=True)
    )
    ordered = sorted(sources["train"].labels)
    halves = {"base_train": ordered[:5], "base_test": ordered[:5], "new_test": ordered[5:]}
    for name, source in sources.items():
        labels = halves.get(name, ordered)
        assert list(source.labels) == labels
        assert Counter(outline.label for outline in source.outlines) == dict.fromkeys(
            labels, len(source) // len(labels)
        )
        assert {tuple(candidates(outline.problem) or ()) for outline in source.outlines} == {tuple(labels)}
        assert dict(source[0].columns) == {"image_width": 8, "image_height": 8}
    assert len({outline.label for outline in sources["test"].outlines[:20]}) > 5, (
        "a limited evaluation sees all classes"
    )


def test_pictures_are_the_ones_of_the_folder(digits: Path) -> None:
    source = load(DataConfig(path=str(digits), image_size=None), split="train")
    originals = {}
    for file in (digits.parent / "digits/train").rglob("*.png"):
        originals[np.asarray(Image.open(file).convert("RGB")).tobytes()] = file.parent.name
    for number in range(len(source)):
        image = source[number].image
        assert image is not None and originals[read_pixels(image).tobytes()] == source[number].label


def test_the_same_command_gives_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    again = made(digits.parent / "digits", tmp_path / "set", "--shots", "4", "--base-new")
    other = made(digits.parent / "digits", tmp_path / "other", "--shots", "4", "--base-new", "--seed", "2")
    for split in SPLITS:
        name = f"{split}-00000-of-00001.parquet"
        assert (again / name).read_bytes() == (digits / name).read_bytes()
        assert (other / name).read_bytes() != (digits / name).read_bytes()


def test_the_card_says_how_it_was_made(digits: Path) -> None:
    card = front_matter(digits)["rollcall"]
    assert isinstance(card, dict)
    assert (card["classes"], card["shots"], card["seed"], card["candidates"]) == (10, 4, 1, "cls_rl")
    for split, known in card["splits"].items():
        file = digits / f"{split}-00000-of-00001.parquet"
        assert known["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    text = (digits / "README.md").read_text()
    assert f"python -m common.data.build {digits.parent / 'digits'} --out {digits} --shots 4 --base-new" in text
    assert card["splits"]["new_test"] == card["splits"]["new_test"] | {"rows": 50, "classes": 5}


def test_datasets_reads_it_by_its_card(digits: Path, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    found = datasets.load_dataset(str(digits), trust_remote_code=False, cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in found.items()} == dict(zip(SPLITS, (40, 100, 20, 50, 50), strict=True))
    row = found["train"][0]
    assert isinstance(row["image"], Image.Image) and row["image"].size == (8, 8)
    assert set(row) == {"problem", "image", "image_width", "image_height", "solution"}


def test_textures_without_a_test_split_get_one(tmp_path: Path) -> None:
    write_textures(tmp_path / "textures", crops=20)
    words = ("--shots", "all", "--test-fraction", "0.25", "--question", "What type of texture is in the photo?")
    out = made(tmp_path / "textures/train", tmp_path / "set", *words)
    data = DataConfig(path=str(out), image_size=16)
    train, test = load(data, split="train"), load_held_out(data)
    assert test is not None and (len(train), len(test)) == (45, 15)
    assert train.labels == test.labels == TEXTURES
    assert train[0].problem.startswith("What type of texture is in the photo?\nPlease choose one from list [ brick, ")
    pictures = [{source[number].image.tobytes() for number in range(len(source))} for source in (train, test)]  # type: ignore[union-attr]
    assert not pictures[0] & pictures[1]


def test_mnist_in_a_list_with_few_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_mnist(tmp_path / "mnist", per_class=6, test_per_class=2)
    for number in range(2, 6):
        (folder / f"train/seven/{number:03}.png").unlink()
    out = made(folder, tmp_path / "set", "--shots", "4", "--candidates", "all", "--max-side", "14")
    printed = capsys.readouterr().out
    assert "note: 1 classes have fewer than 4 pictures: seven (2)" in printed
    assert f"python -m learner.main --config deploy/recipes/laptop.yaml data.path={out}\n" in printed
    source = load(DataConfig(path=str(out), image_size=None), split="train")
    assert len(source) == 38 and Counter(outline.label for outline in source.outlines)["seven"] == 2
    assert {outline.image_size for outline in source.outlines} == {(14, 14)}
    assert "seven (2)" in (out / "README.md").read_text()


def test_bytes_are_kept_or_written_as_png_or_jpeg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    folder = tmp_path / "pictures/a"
    folder.mkdir(parents=True)
    turned = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # by a quarter
    Image.new("RGB", (12, 8)).save(turned, "JPEG", exif=exif)
    given = {"0.jpg": noise((10, 6)), "1.png": encoded(), "2.gif": encoded(form="GIF"), "3.jpg": turned.getvalue()}
    given |= {"4.jpg": noise((64, 32)), "5.webp": encoded(form="WEBP", size=(40, 40))}
    for name, data in given.items():
        (folder / name).write_bytes(data)
    (folder.parent / "b").mkdir()
    (folder.parent / "b/6.png").write_bytes(unlike("b"))
    words = ("--shots", "all", "--test-fraction", "0", "--max-side", "32")
    out = made(folder.parent, tmp_path / "set", *words)
    assert "note: 3 of 7 pictures were scaled down to 32 pixels or written anew" in capsys.readouterr().out
    rows = pq.read_table(out / "train-00000-of-00001.parquet").to_pylist()
    kept = {row["image"]["path"].removeprefix("a/"): row for row in rows if row["solution"] == "a"}
    for name in ("0.jpg", "1.png", "3.jpg"):
        assert kept[name]["image"]["bytes"] == given[name]
    forms = {name: Image.open(BytesIO(row["image"]["bytes"])).format for name, row in kept.items()}
    assert forms == dict.fromkeys(given, "PNG") | dict.fromkeys(("0.jpg", "3.jpg", "4.jpg"), "JPEG")
    sizes = {name: (row["image_width"], row["image_height"]) for name, row in kept.items()}
    assert sizes["3.jpg"] == (8, 12) and sizes["4.jpg"] == (32, 16) and sizes["5.webp"] == (32, 32)


def test_unreadable_pictures_are_counted_in_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(image_folder(tmp_path / "in", {"cat": 4, "dog": 4}))
    (folder / "cat/1.png").write_bytes(b"")
    (folder / "dog/notes.txt").write_text("hello")
    (tmp_path / "secret.png").write_bytes(encoded())
    (folder / "dog/z.png").symlink_to(tmp_path / "secret.png")
    printed = refused(capsys, folder, tmp_path / "out", "--shots", "all", "--base-new")
    assert "3 of 10 rows of out cannot be used" in printed
    for reason in (
        "cat/1.png: image has zero bytes",
        "dog/notes.txt: image cannot be decoded",
        "dog/z.png: image path is no file inside",
    ):
        assert reason in printed


@pytest.mark.parametrize(
    ("folders", "words", "message"),
    [
        ({"a, b": 1, "c": 1}, (), "'a, b'"),
        ({"cat": 1, "cat <think>": 1}, (), "holds tag text"),
        ({"cafe\u0301": 1, "caf\u00e9": 1}, (), "same answer"),
        ({"cat": 2}, ("--base-new",), "two labels at least"),
        ({"train/cat": 1, "test/cat": 1}, ("--test-fraction", "0.5"), "without a test split"),
        ({"cat": 1}, ("--candidates", "hard"), "--confusion"),
        ({"cat": 1}, ("--list-length", "3"), "belong together"),
        ({"cat": 1}, ("--candidates", "hard", "--confusion", "absent.json"), "absent.json cannot be read"),
        ({}, (), "holds no data set"),
    ],
)
def test_what_cannot_become_a_set(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folders: dict[str, int],
    words: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "in").mkdir()
    image_folder(tmp_path / "in", folders)
    assert message in refused(capsys, tmp_path / "in", tmp_path / "out", "--shots", "1", *words)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "--question is empty"),
        (" \n", "--question is empty"),
        ("Choose one from list [ cat, dog ].", "a list of its own"),
        ("Look at the list [ and choose", "the beginning of a list"),
        ("Which?\n(A) cat\n(B) dog", "options of its own"),
        ("Which?\nA. cat\nB. dog", "options of its own"),
        ("<image> Which?", "the mark <image>"),
        ("Which? <answer>", "the mark <answer>"),
        ("Which?</think >", "the mark </think >"),
        ("Which?<|im_end|>", "the mark <|im_end|>"),
        ("Which caf\udce9?", "not UTF-8"),
    ],
)
def test_a_question_that_its_own_linter_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], question: str, message: str
) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    assert message in refused(capsys, tmp_path / "in", tmp_path / "out", "--shots", "1", "--question", question)


@pytest.mark.parametrize(
    "question", ["Which [of these]?", "List the class.", "A. Who?", "Is x < answer > y?", "Wähle 中"]
)
def test_any_other_question_can_be_asked(tmp_path: Path, question: str) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    out = made(tmp_path / "in", tmp_path / "out", "--shots", "1", "--question", question, "--test-fraction", "0")
    assert lint_main([str(out), "--image-size", "8"]) == 0
    source = load(DataConfig(path=str(out), image_size=8), split="train")
    assert candidates(source[0].problem) == ["cat", "dog"]


@pytest.mark.parametrize("out", ["in/set", "in", "in/cat/set", "link/set", "in/../in/set"])
def test_a_set_is_not_written_into_its_own_source(tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert "lies inside the source" in refused(capsys, tmp_path / "in", tmp_path / out, "--shots", "1")


def test_a_set_may_lie_beside_the_list_it_is_made_of(tmp_path: Path) -> None:
    image_folder(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "list.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    made(tmp_path / "list.csv", tmp_path / "set", "--shots", "1", "--test-fraction", "0")


def test_files_that_a_list_names_wrongly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    (tmp_path / "secret.png").write_bytes(encoded())
    rows = [
        "cat/0.png,cat",
        f"{tmp_path / 'in/dog/0.png'},dog",
        "cat/9.png,cat",
        "../secret.png,cat",
        "/etc/passwd,dog",
    ]
    (tmp_path / "in/list.csv").write_text("\n".join(["path,label", *rows]))
    printed = refused(capsys, tmp_path / "in/list.csv", tmp_path / "out", "--shots", "all")
    assert "3 of 5 rows" in printed
    assert re.search(r"cat/9.png: image path is no file inside .*\(no such file\)", printed)
    assert re.search(r"/etc/passwd: image path is no file inside .*\(it lies outside\)", printed)
    assert re.search(r"../secret.png: image path is no file inside .*\(it lies outside\)", printed)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://ex.com/a.png", "in/https://ex.com/a.png: .*: it is an address"),
        ("s3://bucket/a.png", "in/s3://bucket/a.png: .*: it is an address"),
        ("file:///data/a.png", "in/file:///data/a.png: .*: it is an address"),
        ("iVBORw0KGgo" * 200, "image is base64 text of 2200 characters"),
        ('"a\nb.png"', r"in/a\\nb.png: image path is no file"),
    ],
    ids=["https", "s3", "file", "base64", "newline"],
)
def test_what_a_list_names_may_be_no_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, message: str
) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    (tmp_path / "in/list.csv").write_text(f"path,label\ncat/0.png,cat\ndog/0.png,dog\n{path},cat\n")
    printed = refused(capsys, tmp_path / "in/list.csv", tmp_path / "out", "--shots", "all", "--test-fraction", "0")
    assert re.search(message, printed), printed
    assert "name picture files inside the folder" in printed and "embed" not in printed and len(printed) < 1000


def test_a_file_may_look_like_encoded_text(tmp_path: Path) -> None:
    folder = Path(image_folder(tmp_path / "in", {"cat": 1, "dog": 1}))
    name = hashlib.sha256(b"cat").hexdigest()
    (folder / "cat/0.png").rename(folder / name)
    (folder / "list.csv").write_text(f"path,label\n{name},cat\ndog/0.png,dog\n")
    made(folder / "list.csv", tmp_path / "out", "--shots", "all")


@pytest.mark.parametrize("sign", ["\n", "\x1b", "\t", "\x7f", "\x85", "\u2028", "\0"], ids=ascii)
def test_a_label_with_a_control_character_is_refused_by_build_and_lint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sign: str
) -> None:
    label = f"a{sign}b"
    lint_main([parquet(tmp_path / "set.parquet", [row(solution=label), row(solution="cat")])])
    assert f"label {label!r} holds a line break or another control" in capsys.readouterr().err
    if sign == "\0":
        return  # no file system and no CSV takes it
    image_folder(tmp_path / "in", {label: 1, "dog": 1})
    assert "holds a line break or" in refused(capsys, tmp_path / "in", tmp_path / "out", "--shots", "1")
    (tmp_path / "in/list.csv").write_text(f'path,label\nx.png,"{label}"\ndog/0.png,dog\n')
    assert "holds a line break or" in refused(capsys, tmp_path / "in/list.csv", tmp_path / "out", "--shots", "1")


@pytest.mark.parametrize("label", ["crème brûlée", "می\u200cروم", "👨\u200d👩", "a\u00a0b", "  cat \n"])
def test_other_labels_pass(label: str) -> None:
    assert bare_label(label) == label.strip()


def test_a_share_for_test_that_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    said = refused(capsys, tmp_path / "in", tmp_path / "out", "--shots", "1", "--test-fraction", "0.2")
    assert "--test-fraction 0.2 holds out no picture" in said
    made(tmp_path / "in", tmp_path / "out", "--shots", "1")
    assert "note: no picture is held out for test" in capsys.readouterr().out
    made(tmp_path / "in", tmp_path / "none", "--shots", "1", "--test-fraction", "0")
    assert "held out" not in capsys.readouterr().out


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_frames_that_are_dropped_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    folder = Path(image_folder(tmp_path / "in", {"cat": 2, "dog": 1}))
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(folder / f"dog/1.{form.lower()}", form, save_all=True, append_images=[second])
    made(folder, tmp_path / "out", "--shots", "all")
    said = "note: 1 of 4 pictures have several frames or pages: the first is taken"
    assert said in capsys.readouterr().out and said[6:] in (tmp_path / "out/README.md").read_text()


def test_links_of_a_source_may_lead_to_another_of_its_splits(tmp_path: Path) -> None:
    image_folder(tmp_path / "in", {"train/cat": 1, "train/dog": 1, "pool/extra": 2})
    (tmp_path / "in/train/cat/more").symlink_to(tmp_path / "in/pool/extra")
    out = made(tmp_path / "in", tmp_path / "out", "--shots", "all", "--test-fraction", "0")
    source = load(DataConfig(path=str(out), image_size=8), split="train")
    assert Counter(outline.label for outline in source.outlines) == {"cat": 3, "dog": 1}


def test_any_whole_number_is_a_seed(tmp_path: Path) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    for seed in ("-1", "0", str(2**64), "9" * 50):
        made(tmp_path / "in", tmp_path / f"out{seed}", "--shots", "1", "--test-fraction", "0", "--seed", seed)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    (tmp_path / "out").mkdir()
    made(tmp_path / "in", tmp_path / "out", "--shots", "1")
    assert "is there already" in refused(capsys, tmp_path / "in", tmp_path / "out", "--shots", "1")


def test_a_fault_in_train_and_one_of_the_same_name_in_test_are_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(image_folder(tmp_path / "in", {"train/cat": 1, "train/dog": 1, "test/cat": 1}))
    for split in ("train", "test"):
        (folder / split / "cat/0.png").write_bytes(b"")
    printed = refused(capsys, folder, tmp_path / "out", "--shots", "1")
    assert "2 of 3 rows" in printed and "test/cat/0.png: image has" in printed and "train/cat/0.png: image" in printed


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(tmp_path / "in", {"cat": 1, "dog": 1})
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(capsys, tmp_path / "in", tmp_path / "file/out", "--shots", "1")


def test_hard_lists_hold_what_was_confused(tmp_path: Path) -> None:
    image_folder(tmp_path / "in", dict.fromkeys(("ant", "bee", "cat", "dog", "eel"), 1))
    (tmp_path / "evaluation.json").write_text('{"confusion": [["ant", "eel", 3], ["dog", "cat", 1], ["ant", "", 7]]}')
    words = ("--shots", "1", "--candidates", "hard", "--confusion", str(tmp_path / "evaluation.json"))
    out = made(tmp_path / "in", tmp_path / "set", *words, "--list-length", "2")
    source = load(DataConfig(path=str(out), image_size=8), split="train")
    lists = {outline.label: set(candidates(outline.problem) or ()) for outline in source.outlines}
    assert lists["ant"] == lists["eel"] == {"ant", "eel"} and lists["cat"] == lists["dog"] == {"cat", "dog"}
    assert "bee" in lists["bee"] and len(lists["bee"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        *(("--shots", text) for text in ("0", "many", "nan", "1.5", "-1")),
        *(("--test-fraction", text) for text in ("1", "nan", "-0.1", "inf", "x")),
        *(("--max-side", text) for text in ("0", "-1", "1e3")),
        *(("--max-megapixels", text) for text in ("nan", "inf", "-inf", "-1", "0", "x")),
        *(("--list-length", text) for text in ("1", "nan")),
        *(("--seed", text) for text in ("nan", "1.5", "")),
    ],
)
def test_numbers_out_of_range_are_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["x", "--out", "y", "--shots", "1", f"{words[0]}={words[1]}"])
    assert caught.value.code == 2 and words[0] in capsys.readouterr().err


def test_the_old_name_of_a_policy_is_told_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["x", "--out", "y", "--shots", "1", "--candidates", "seed"])
    assert caught.value.code == 2
    assert "--candidates seed is now called --candidates cls_rl" in capsys.readouterr().err


def test_the_commands_it_prints_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a space in the path, and without a test split, which `laptop.yaml` would look for."""
    write_textures(tmp_path / "textures", crops=2)
    out = made(tmp_path / "textures/train", tmp_path / "my set", "--shots", "all", "--test-fraction", "0")
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "learner.main" in line]
    assert [words[5:] for words in commands] == [[f"data.path={out}", "data.eval_split=null"], [f"data.path={out}"]]
