"""All eleven layouts are read; what is not as CoOp writes it is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from common.config.schema import DataConfig
from common.data.build.__main__ import main
from common.data.build.coop import LAYOUTS, open_layout
from common.data.sources import load
from common.errors import DataError
from tests.helpers.layouts import ZHOU, lay_out
from tests.helpers.makers import encoded

QUESTIONS = {
    "dtd": "What type of texture is in the photo?",
    "eurosat": "What type of object is in the centered satellite photo?",
    "fgvc": "What type of aircraft is in the photo?",
    "ucf": "What actions is the person performing in the photo?",
}
LABELS = {name: [line.partition(" ")[2] for line in lines] for name, (_, _, _, lines) in ZHOU.items()} | {
    "fgvc": ["707-320", "Boeing 717"],
    "imagenet": ["tench", "missile"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    lay_out(place)
    return place


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read(root: Path, name: str) -> None:
    found, question = open_layout(name, root)
    assert list(found.labels) == LABELS[name], "in the order of class ids"
    assert question == QUESTIONS.get(name, "What type of object is in the photo?")
    train, test = (Counter(picture.label for picture in pictures) for pictures in (found.train, found.test))
    twice = {"missile": 2}  # two synsets
    assert train == {label: 3 * twice.get(label, 1) for label in found.labels}
    assert test == {label: 2 * twice.get(label, 1) for label in found.labels}
    assert all((picture.root / picture.path).is_file() for picture in (*found.train, *found.test))
    wanted = "one label: missile" if name == "imagenet" else "split val is left out: 2 pictures"
    assert [note for note in found.notes if wanted in note] == list(found.notes)
    assert len(found.notes) == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_becomes_a_set(root: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    assert main([str(root), "--layout", name, "--shots", "2", "--base-new", "--out", str(out)]) == 0
    data = DataConfig(path=str(out), image_size=8)
    counts = {split: len(load(data, split=split)) for split in ("train", "test", "base_train", "base_test", "new_test")}
    more = 2 if name == "imagenet" else 0  # the test pictures of a second synset of one name
    assert counts == {"train": 4, "test": 4 + more, "base_train": 2, "base_test": 2, "new_test": 2 + more}
    base, new = LABELS[name]
    assert load(data, split="base_train").labels == (base,) and load(data, split="new_test").labels == (new,)
    assert load(data, split="new_test")[0].problem.endswith(f"list [ {new}].")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_part_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"holds no {name} as CoOp lays it out") as caught:
        open_layout(name, tmp_path)
    assert LAYOUTS[name].folder in str(caught.value.got) and LAYOUTS[name].folder in caught.value.remedy


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1, 2]",
        '{"train": [["a.jpg", 0]]}',
        '{"train": 3}',
        json.dumps({"train": [["a.jpg", 0, "cat"], ["b.jpg", 0, "dog"]]}),
    ],
)
def test_a_broken_split_file_is_refused(root: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(content)
    with pytest.raises(DataError, match=r"split_zhou_DescribableTextures\.json cannot be read"):
        open_layout("dtd", tmp_path)


@pytest.mark.parametrize("path", ["../secret.jpg", "{outside}", "link/secret.jpg", "link.jpg"])
def test_a_split_file_reaches_no_file_outside_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    images = tmp_path / "data/dtd/images"
    images.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    for file in (outside / "secret.jpg", tmp_path / "data/dtd/secret.jpg"):
        file.write_bytes(encoded(form="JPEG"))
    (images / "link").symlink_to(outside)
    (images / "link.jpg").symlink_to(outside / "secret.jpg")
    rows = {"train": [[path.format(outside=outside / "secret.jpg"), 0, "banded"]], "test": []}
    (tmp_path / "data/dtd/split_zhou_DescribableTextures.json").write_text(json.dumps(rows))
    words = [str(tmp_path / "data"), "--layout", "dtd", "--shots", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "image path is no file inside" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_picture_folder_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    """CoOp's instructions link large sets into place."""
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/images").symlink_to(root / "dtd/images")
    split = "dtd/split_zhou_DescribableTextures.json"
    (tmp_path / split).write_bytes((root / split).read_bytes())
    assert main([str(tmp_path), "--layout", "dtd", "--shots", "1", "--out", str(tmp_path / "out")]) == 0


def test_imagenet_may_lie_elsewhere(tmp_path: Path) -> None:
    """Its 150 GB are often linked: images/train and images/val lead out of the root."""
    lay_out(tmp_path / "root")
    images = tmp_path / "root/imagenet/images"
    before, _ = open_layout("imagenet", tmp_path / "root")
    for split in ("train", "val"):
        (images / split).rename(tmp_path / split)
        (images / split).symlink_to(tmp_path / split)
    after, _ = open_layout("imagenet", tmp_path / "root")
    assert after == before
    out = tmp_path / "set"
    words = [str(tmp_path / "root"), "--layout", "imagenet", "--shots", "1", "--out", str(out)]
    assert main(words) == 0
