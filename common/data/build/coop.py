"""The eleven data sets as CoOp lays them out below one root, with its split files.

Layouts and class ids: Zhou et al. 2022, Learning to Prompt for Vision-Language Models (arXiv:2109.01134). Questions are
CLS-RL's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from common.config.schema import OBJECT_QUESTION
from common.data.build.collection import Collection, Picture, collect
from common.data.build.lists import Splits
from common.data.build.sources import folder_splits
from common.data.formats.tree import read_tree
from common.data.table import UNNAMED, reading_data
from common.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the parts of a data set lie."""

    folder: str  # below the root
    images: str  # below the folder; what split files name lies below this
    splits: str  # below the folder: a split file, or what the reader needs
    question: str = OBJECT_QUESTION
    read: Callable[[Path, Path], tuple[Splits, list[str]]]  # (images, splits) -> pictures by split, labels by id


def open_layout(name: str, root: Path) -> tuple[Collection, str]:
    """Return the data set `name` of LAYOUTS, and the question to ask about it.

    Class ids that share one name become one label, because an answer cannot tell them apart. A note says so.

    Raises DataError where a part of the layout is missing or not as CoOp writes it.
    """
    layout = LAYOUTS[name]
    images, splits_file = root / layout.folder / layout.images, root / layout.folder / layout.splits
    with reading_data(root, remedy="check the path"):
        missing = [str(part) for part in (images, splits_file) if not part.exists()]
    if missing:
        raise DataError(
            f"{root} holds no {name} as CoOp lays it out",
            got=f"no {' and no '.join(missing)}",
            remedy=f"give the folder that holds {layout.folder}, laid out by CoOp's instructions",
        )
    with reading_data(splits_file):
        splits, labels = layout.read(images, splits_file)

    unique = list(dict.fromkeys(labels))
    shared = sorted({label for label in unique if labels.count(label) > 1}) if len(unique) < len(labels) else []
    notes = [f"{len(labels) - len(unique)} class ids share the name of another and are one label: {', '.join(shared)}"]
    return collect(name, splits, unique, notes if shared else ()), layout.question


def _zhou(images: Path, file: Path) -> tuple[Splits, list[str]]:
    """Read a split_zhou file: {split: [[path, id, name], ...]}."""
    rows = TypeAdapter(dict[str, list[tuple[str, int, str]]]).validate_json(file.read_bytes())
    names: dict[int, str] = {}
    for _, number, name in (row for found in rows.values() for row in found):
        if names.setdefault(number, name) != name:
            raise ValueError(f"class id {number} has two names, {names[number]!r} and {name!r}")
    splits = {
        split: [Picture(root=images, path=path, label=name) for path, _, name in found] for split, found in rows.items()
    }
    return splits, [names[number] for number in sorted(names)]


def _fgvc(images: Path, file: Path) -> tuple[Splits, list[str]]:
    """Read variants.txt, a name a line by id, and images_variant_{train,val,test}.txt of lines `number name`."""
    splits: Splits = {}
    for split in ("train", "val", "test"):
        pairs = _pairs(file.parent / f"images_variant_{split}.txt")
        splits[split] = [Picture(root=images, path=f"{number}.jpg", label=name) for number, name in pairs]
    labels = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    _check_known((picture.label for pictures in splits.values() for picture in pictures), labels, file)
    return splits, labels


def _imagenet(images: Path, file: Path) -> tuple[Splits, list[str]]:
    """Read classnames.txt of lines `synset name`, beside images/{train,val}/synset. Ids follow the sorted synsets."""
    names = dict(_pairs(file))
    by_synset: Splits = {}
    for split in ("train", "val"):  # each may be a link to where ImageNet lies
        if (images / split).is_dir():
            found, _ = folder_splits(read_tree(images / split))
            by_synset[split] = found[UNNAMED]
    synsets = sorted({picture.label for pictures in by_synset.values() for picture in pictures})
    _check_known(synsets, names, file)
    splits = {
        split: [replace(picture, label=names[picture.label]) for picture in pictures]
        for split, pictures in by_synset.items()
    }
    return splits, [names[synset] for synset in synsets]


def _pairs(file: Path) -> list[tuple[str, str]]:
    """Return the first word and the rest of every line."""
    pairs = [line.strip().partition(" ") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if nameless := [first for first, _, name in pairs if not name.strip()]:
        raise ValueError(f"{file.name} gives {nameless[0]} no name")
    return [(first, name.strip()) for first, _, name in pairs]


def _check_known(found: Iterable[str], known: Iterable[str], file: Path) -> None:
    if strange := sorted(set(found) - set(known)):
        raise ValueError(f"{file.name} does not name {', '.join(strange[:3])}")


def _zhou_layout(folder: str, images: str, name: str, question: str = OBJECT_QUESTION) -> Layout:
    return Layout(folder=folder, images=images, splits=f"split_zhou_{name}.json", question=question, read=_zhou)


LAYOUTS: Mapping[str, Layout] = {
    "caltech": _zhou_layout("caltech-101", "101_ObjectCategories", "Caltech101"),
    "cars": _zhou_layout("stanford_cars", "", "StanfordCars"),
    "dtd": _zhou_layout("dtd", "images", "DescribableTextures", "What type of texture is in the photo?"),
    "eurosat": _zhou_layout("eurosat", "2750", "EuroSAT", "What type of object is in the centered satellite photo?"),
    "fgvc": Layout(
        folder="fgvc_aircraft",
        images="images",
        splits="variants.txt",
        question="What type of aircraft is in the photo?",
        read=_fgvc,
    ),
    "flowers": _zhou_layout("oxford_flowers", "jpg", "OxfordFlowers"),
    "food": _zhou_layout("food-101", "images", "Food101"),
    "imagenet": Layout(folder="imagenet", images="images", splits="classnames.txt", read=_imagenet),
    "pets": _zhou_layout("oxford_pets", "images", "OxfordPets"),
    "sun": _zhou_layout("sun397", "SUN397", "SUN397"),
    "ucf": _zhou_layout("ucf101", "UCF-101-midframes", "UCF101", "What actions is the person performing in the photo?"),
}
