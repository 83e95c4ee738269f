"""CoOp's eleven data sets, each with a handful of pictures of three classes, laid out below one root."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.helpers.makers import unlike

# Folder, picture folder, split file, and (path, label) of three classes in the order of their ids. Names as CoOp's.
ZHOU = {
    "caltech": ("caltech-101", "101_ObjectCategories", "Caltech101", ["Faces_easy/{}.jpg face", "ant/{}.jpg ant"]),
    "cars": (
        "stanford_cars",
        "",
        "StanfordCars",
        ["cars_{s}/{}.jpg 2012 BMW X6 SUV", "cars_{s}/1{}.jpg 2007 BMW X5 SUV"],
    ),
    "dtd": ("dtd", "images", "DescribableTextures", ["banded/banded_{}.jpg banded", "dotted/dotted_{}.jpg dotted"]),
    "eurosat": ("eurosat", "2750", "EuroSAT", ["Forest/Forest_{}.jpg Forest", "River/River_{}.jpg River"]),
    "flowers": (
        "oxford_flowers",
        "jpg",
        "OxfordFlowers",
        ["image_{}.jpg pink primrose", "image_1{}.jpg globe thistle"],
    ),
    "food": ("food-101", "images", "Food101", ["pizza/{}.jpg pizza", "apple_pie/{}.jpg apple_pie"]),
    "pets": ("oxford_pets", "images", "OxfordPets", ["Bengal_{}.jpg bengal", "pug_{}.jpg pug"]),
    "sun": ("sun397", "SUN397", "SUN397", ["a/abbey/{}.jpg abbey", "c/church/indoor/{}.jpg indoor church"]),
    "ucf": ("ucf101", "UCF-101-midframes", "UCF101", ["Archery/v_{}.jpg Archery", "Yo_Yo/v_{}.jpg Yo_Yo"]),
}
EACH = {"train": 3, "val": 1, "test": 2}  # pictures of each class


def lay_out(root: Path) -> None:
    for folder, images, name, classes in ZHOU.values():
        _zhou(root / folder, images, name, classes)
    _fgvc(root / "fgvc_aircraft")
    _imagenet(root / "imagenet")


def _zhou(folder: Path, images: str, name: str, classes: list[str]) -> None:
    rows: dict[str, list[list[object]]] = {split: [] for split in EACH}
    for number, line in enumerate(classes):
        pattern, _, label = line.partition(" ")
        for split, count in EACH.items():
            for picture in range(count):
                path = pattern.format(f"{split}{picture}", s=split)
                _draw(folder / images / path, number)
                rows[split].append([path, number, label])
    (folder / f"split_zhou_{name}.json").write_text(json.dumps(rows))


def _fgvc(folder: Path) -> None:
    variants = ["707-320", "Boeing 717"]
    number = 0
    for split, count in EACH.items():
        lines = []
        for kind, label in enumerate(variants):
            for _ in range(count):
                number += 1
                _draw(folder / "images" / f"{number:07}.jpg", kind)
                lines.append(f"{number:07} {label}\n")
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")


def _imagenet(folder: Path) -> None:
    """Two of the three synsets share a name, as some of the thousand do."""
    names = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile"}
    for synset in names:
        for split, count in (("train", 3), ("val", 2)):
            for number in range(count):
                _draw(folder / "images" / split / synset / f"{number}.JPEG", number)
    (folder / "classnames.txt").write_text("".join(f"{synset} {name}\n" for synset, name in names.items()))


def _draw(file: Path, kind: int) -> None:
    """A picture that no other file has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.open(BytesIO(unlike("/".join([str(kind), *file.parts[-4:]])))).save(file, "JPEG")
