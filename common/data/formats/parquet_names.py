"""Which parquet files of a folder are one split by their names, and what else lies there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.formats.split_names import (
    OWN_SPLITS,
    answers,
    are_pair,
    read_split_name,
    refuse_twins,
    says_paired,
    word_of_split,
)
from common.data.formats.tree import Folder, Tree
from common.data.table import UNNAMED, count_cases
from common.errors import DataError

_SHARD = re.compile(r"(.*?)[-_.]?(\d+)[-_]of[-_](\d+)(?!\d).*")
# Files that are no rows by their endings: documents, and pictures that rows may name.
_QUIET = {"md", "rst", "txt", "html", "htm", "pdf", "yaml", "yml", "toml", "cfg", "ini", "py", "ipynb", "sh", "log"}
_QUIET |= {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jfif", "heic", "avif", "svg"}
_CARDS = {"dataset_info.json", "dataset_infos.json", "license", "citation", "readme"}


def is_parquet(file: Path) -> bool:
    """Whether it is a parquet file by its name, in any case."""
    return file.suffix.casefold() == ".parquet" and file.is_file()


def name_splits(tree: Tree) -> dict[str, list[Path]]:
    """Return the parquet files of each split, by the names of files or folders; none without parquet files.

    Raises DataError when some names say a split and others do not, two of them say one split, or shards of a split are
    missing or there twice.
    """
    place = tree.top.path
    files = [file for file in tree.top.all_files(".parquet") if is_parquet(file)]
    by_split = _find_pair(files, place) or _group_by_split(files, place)
    if UNNAMED in by_split and len(by_split) > 1:
        raise DataError(
            f"{place} mixes parquet files with and without the name of a split",
            got=", ".join(file.name for file in by_split[UNNAMED][:5]),
            remedy="name them train-00000-of-00001.parquet and so on, or set data.path to one file",
        )
    refuse_twins(str(place), by_split)
    for split, files in by_split.items():
        _check_shards(place, split, files)
    return by_split


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """What a file's name says of its part: `train-00001-of-00003-x` is number 1 of 3."""

    file: Path
    below: tuple[str, ...]  # the folders between the one that says the split and the file
    number: int
    count: int | None  # None: 0001.parquet


def _check_shards(place: Path, split: str, files: Iterable[Path]) -> None:
    """Raise DataError where shards of a split are missing, or two files say the same one."""
    sets: dict[str, list[_Shard]] = defaultdict(list)  # by the name before the number
    for file in files:
        below = _folders_below(file.relative_to(place))
        if found := _SHARD.fullmatch(file.stem):
            shard = _Shard(file=file, below=below, number=int(found[2]), count=int(found[3]))
            sets[found[1].casefold()].append(shard)
        elif split != UNNAMED and file.stem.isdecimal():  # as the hub converts a set: default/train/0000.parquet
            sets["/"].append(_Shard(file=file, below=below, number=int(file.stem), count=None))
    for shards in sets.values():
        _refuse_twice(place, split, shards)
        _refuse_missing(place, split, shards)


def _folders_below(file: Path) -> tuple[str, ...]:
    """Return the folders below the one that says the split; none where the file's name says it."""
    folders = file.parts[:-1]
    named = next((number for number, name in enumerate(folders, 1) if word_of_split(name)), len(folders))
    return folders[named:]


def _refuse_twice(place: Path, split: str, shards: Iterable[_Shard]) -> None:
    by_part: dict[tuple[object, ...], list[Path]] = defaultdict(list)
    for shard in shards:
        by_part[(*shard.below, shard.number)].append(shard.file)
    for (*_, number), same in by_part.items():
        if len(same) < 2:
            continue
        parents = sorted({file.parent for file in same})
        folders = sorted({file.relative_to(place).parts[0] for file in same if file.parent != place})
        one = place / folders[0] if len(folders) > 1 else parents[-1]
        raise DataError(
            f"{place} has shard {number} of {split or 'its rows'} more than once",
            got=count_cases("files", sorted(str(file.relative_to(place)) for file in same)),
            remedy=f"if the folders are data sets of their own, let data.path be one of them, as {one}"
            if len(parents) > 1
            else "remove the files of another download",
        )


def _refuse_missing(place: Path, split: str, shards: Sequence[_Shard]) -> None:
    there, count = {shard.number for shard in shards}, max(shard.count or 0 for shard in shards)
    first = int(count in there)  # some count from one
    missing = [f"{number:05}" for number in range(first, first + count) if number not in there]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise DataError(
            f"{len(missing)} of {count} shards of {split or place} {are} missing",
            got=f"in {place} {count_cases('no shard', missing)}",
            remedy="fetch what is missing; or, if this is all that is wanted, rename the files, as train-0.parquet",
        )


def find_notes(tree: Tree, by_split: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """Return a line for each kind of thing that may be taken for rows and is none, or joins what may be apart."""
    place = tree.top.path
    pictures = [folder for folder in tree.top.filled if _may_be_named(folder)]
    hidden = [path for path in tree.hidden if path.suffix.casefold() == ".parquet" or path.is_dir()]
    read = {file for files in by_split.values() for file in files}
    kinds: dict[str, Iterable[Path]] = {
        "hidden files and folders are left out": hidden,
        "links to folders that are read already are left out": tree.again,
        "files beside the parquet files are left out": _left_out(tree.top, pictures, read),
        "folders without a file are left out": _empty(tree.top),
        "folders beside the parquet files are read only where rows name their files": [f.path for f in pictures],
    }
    lines = []
    for what, paths in kinds.items():
        if names := sorted(str(path.relative_to(place)) for path in paths):
            lines.append(count_cases(what, names))
    for split, files in by_split.items():
        names = sorted({_source(file.relative_to(place)) for file in files})
        if len(names) > 1:
            of = f", {split}" if split else ""
            lines.append(count_cases(f"files of several names or folders are one split{of}", names))
    if own := sorted(name for name in by_split if read_split_name(name) and not answers(name, by_split)):
        lines.append(count_cases(OWN_SPLITS, own))
    return tuple(lines)


def _may_be_named(folder: Folder) -> bool:
    """Whether rows may name files of a folder: it holds no parquet, and not only files that may be rows."""
    files = folder.all_files()
    return not folder.all_files(".parquet") and not all(_may_hold_rows(file.name.casefold()) for file in files)


def _left_out(top: Folder, pictures: Sequence[Folder], read: set[Path]) -> list[Path]:
    """Return the files that may hold rows and are not read: test.pq, test.parquet.gz, test.zip."""
    aside = {folder.path for named in pictures for folder in named.walk()}
    files = [folder.path / name for folder in top.walk() if folder.path not in aside for name in folder.files]
    return [file for file in files if file not in read and _may_hold_rows(file.name.casefold())]


def _may_hold_rows(name: str) -> bool:
    stem, _, ending = name.rpartition(".")
    return bool(stem) and ending not in _QUIET and name not in _CARDS and stem not in _CARDS


def _empty(folder: Folder) -> list[Path]:
    """Return the folders without a file in them or below, each without those in it."""
    empty = [below.path for below in folder.folders if not below.file_count]
    return empty + [path for below in folder.folders if below.file_count for path in _empty(below)]


def _group_by_split(files: Iterable[Path], place: Path) -> dict[str, list[Path]]:
    """Return the files by what their names say of the split, as the names say it; UNNAMED where they say nothing.

    `Test/7.parquet` is of Test, `base_test.parquet` of base_test. `cars_train.parquet` is of train: unless that is
    there as such, then it is a split of its own name.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[_naming_part(file.relative_to(place))].append(file)
    words = {name: word_of_split(name) for name in by_name}
    sure = {words[name] for name in by_name if (read := read_split_name(name)) is not None and read.is_sure}
    by_split: dict[str, list[Path]] = defaultdict(list)
    for name, found in by_name.items():
        read = read_split_name(name)
        apart = words[name] in sure and read is not None and not read.is_sure
        whole = apart or any(
            _SHARD.fullmatch(file.stem) for file in found
        )  # what others name with care is a split of its own
        by_split[name if whole else words[name]] += found
    return dict(by_split)


def _find_pair(files: Iterable[Path], place: Path) -> dict[str, list[Path]]:
    """Return the files by names that say a split only together, as tr.parquet and te.parquet; none for other names."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        names = (*file.relative_to(place).parts[:-1], _without_numbers(file.stem))
        by_name[next(filter(says_paired, names), UNNAMED)].append(file)
    return dict(by_name) if are_pair(by_name) else {}


def _naming_part(file: Path) -> str:
    """Return the part of a path that says the split: a folder, or the name of the file without the number of its part.

    `data/train-00000-of-00001.parquet` -> train, `test/data-00000-of-00001.parquet` -> test, `a_7.parquet` -> a.
    """
    shard = _SHARD.fullmatch(file.stem)
    if shard and word_of_split(shard[1]):
        return shard[1]
    return next(filter(word_of_split, file.parts[:-1]), shard[1] if shard else _without_numbers(file.stem))


def _source(file: Path) -> str:
    """Return folder and name of a file without the number of its part: files that differ here may be of two sets."""
    shard = _SHARD.fullmatch(file.stem)
    folders = [_without_numbers(part) or "part" for part in file.parts[:-1]]
    return "/".join([*folders, (shard[1] if shard else _without_numbers(file.stem)) or "part"])


def _without_numbers(stem: str) -> str:
    """Return a name without the number of its part, perhaps none: `train_part2` is `train`; `fold2` is no part."""
    if re.search(r"(fold|version|v|config|task)[\W_]*\d+$", stem, re.IGNORECASE):
        return stem
    return re.sub(r"([\W_]*(part|shard|chunk)?[\W_]*\d+)+$", "", stem, flags=re.IGNORECASE)
