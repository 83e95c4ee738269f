"""What the name of a folder, a file or a list's cell says of its split: one rule for every format.

`Training`, `TEST`, `seg_train`, `train2017` and `images-val` are the splits train, test, train, train and val.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from common.errors import DataError

TRAIN, TESTS = "train", ("test", "val", "dev", "eval")  # the latter in the order in which one is taken to test on
_WORDS = {"train": TRAIN, "training": TRAIN, "test": "test", "testing": "test", "dev": "dev", "development": "dev"}
_WORDS |= {"trn": TRAIN, "tst": "test", "val": "val", "valid": "val", "validate": "val", "validation": "val"}
_WORDS |= {"eval": "eval", "evaluation": "eval"}
# Names that say a split only beside another: planes and trains are classes, en and tr are languages.
_PAIRED = {"trains": TRAIN, "tests": "test", "tr": TRAIN, "te": "test"}
# Words that say nothing of a split: `test_images` is `test`.
_PICTURES = {"image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "data", "jpg"}
_PICTURES |= {"jpeg", "jpegs", "jpegimages", "png", "crops", "frames"}
_PLAIN = _PICTURES | {"set", "sets", "seg", "split", "splits", "dataset", "datasets", "file", "files", "folder", "dir"}
_PLAIN |= {"sample", "samples", "part", "shard", "of", "final", "the", "raw", "cropped", "resized"}
_PLAIN |= {"class", "classes", "cls", "classification"}
# Words that make another split of it, to be asked for by its own name: `base_test` beside `new_test`.
_OTHER = {"base", "new", "novel", "old", "seen", "unseen", "extra", "ood", "holdout", "backup", "copy"}
_OTHER |= {"unlabeled", "unlabelled", "unsupervised"}
_GLUED = re.compile(rf"({'|'.join(_WORDS)})(set|sets|split|data|images|imgs|dir|folder|files)")
OWN_SPLITS = "splits of their own names, which data.split and data.eval_split may name"  # a note
_EXACT, _NUMBERED, _LOOSE = range(3)


@dataclass(frozen=True, slots=True)
class SplitName:
    """A name that says a split."""

    split: str  # train, test, val, dev or eval
    rank: int  # 0: it says nothing else; 1: and a number, train2017; 2: and more, cars_train
    others: tuple[str, ...] = ()  # the words that say more

    @property
    def is_sure(self) -> bool:
        """Whether it says no more than the split, and perhaps a number."""
        return self.rank < _LOOSE


def read_split_name(name: str) -> SplitName | None:
    """Return the split that a name says; None where it says none, two, or one of its own as `base_test` does."""
    if says_paired(name):
        return SplitName(_PAIRED[name.casefold()], _LOOSE)
    words = _words(name)
    said = {_WORDS[word] for word in words if word in _WORDS}
    others = [word for word in words if word not in _WORDS and word not in _PLAIN and not word.isdecimal()]
    if others == ["trainval"] and not said:
        said = {TRAIN}
    if len(said) != 1 or not _OTHER.isdisjoint(others):
        return None
    rank = _LOOSE if others else _NUMBERED if any(map(str.isdecimal, words)) else _EXACT
    return SplitName(said.pop(), rank, tuple(others))


def says_paired(name: str) -> bool:
    """Whether a name says a split only where another says the other: tr beside te."""
    return name.casefold() in _PAIRED


def are_pair(names: Iterable[str]) -> bool:
    """Whether names say splits only together, and do so: tr and te, trains and tests."""
    return {_PAIRED.get(name.casefold()) for name in names} == {TRAIN, "test"}


def says_train(name: str) -> bool | None:
    """Return whether a name speaks of rows to train on, as base_train does, or to test on; None where of neither."""
    said = {_WORDS[word] for word in _words(name) if word in _WORDS}
    return said == {TRAIN} if said else None


def word_of_split(name: str) -> str:
    """Return the word that says a split, as it is written: `cars_Train` -> Train. "" where there is none.

    A split of its own is the whole name: base_test.
    """
    said = next((word for word in re.findall(r"[^\W\d_]+", _apart(name)) if set(_words(word)) & _WORDS.keys()), "")
    return name if said and not _OTHER.isdisjoint(_words(name)) else said


def says_pictures(name: str) -> bool:
    """Whether a name says no more than that pictures lie there: images, JPEGImages, photo_data."""
    words = _words(name)
    return bool(words) and all(word in _PICTURES for word in words)


def find_split(names: Iterable[str], asked: str) -> list[str]:
    """Return those of `names` that `asked` may mean: at best one.

    It is the name itself, or the same in another case, or what says the same split: `train` finds `Training`. A name
    that says nothing else goes before `train2017`, and that before `cars_train`.
    """
    names = list(names)
    if asked in names:
        return [asked]
    if same := [name for name in names if name.casefold() == asked.casefold()]:
        return same
    wanted = read_split_name(asked)
    if wanted is None or wanted.rank != _EXACT:
        return []
    paired = are_pair(name for name in names if says_paired(name))
    readable = [name for name in names if paired or not says_paired(name)]
    said = {name: read for name in readable if (read := read_split_name(name)) and read.split == wanted.split}
    best = min((read.rank for read in said.values()), default=_EXACT)
    return [name for name, read in said.items() if read.rank == best]


def answers(name: str, names: Iterable[str]) -> bool:
    """Whether a split is found by what its name says, and need not be asked for by the name itself."""
    read = read_split_name(name)
    return read is not None and find_split(names, read.split) == [name]


def pick_split(place: str, names: Iterable[str], asked: str) -> str | None:
    """Return the one of `names` that `find_split` finds; None where it finds none. Raises DataError for more."""
    found = find_split(names, asked)
    if len(found) > 1:
        raise DataError(
            f"{place} has more than one split that {asked} may mean",
            got=", ".join(sorted(found)),
            remedy="ask for one by its own name, or rename or join them",
        )
    return found[0] if found else None


def refuse_twins(place: str, names: Iterable[str]) -> None:
    """Raise DataError where two names say the same split and nothing else, as `Train` and `training` do."""
    by_split: dict[str, list[str]] = {}
    for name in names:
        read = read_split_name(name)
        if read is not None and read.rank == _EXACT:
            by_split.setdefault(read.split, []).append(name)
    for split, twins in by_split.items():
        if len(twins) > 1:
            raise DataError(
                f"{place} has split {split} more than once",
                got=", ".join(sorted(twins)),
                remedy="join them in one, or give the other a name of its own, as in holdout",
            )


def _words(name: str) -> list[str]:
    """Return the words and numbers of a name in small letters: `TrainImages_2` -> train, images, 2."""
    words: list[str] = []
    for word in re.findall(r"[^\W\d_]+|\d+", _apart(name)):
        glued = _GLUED.fullmatch(word.casefold())
        words += glued.groups() if glued else [word.casefold()]
    return words


def _apart(name: str) -> str:
    """Return the name with a space before each capital within a word: `trainImages` -> `train Images`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
