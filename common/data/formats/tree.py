"""A folder and all that is in it, walked once: links are followed as long as they stay inside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common.data.table import count_cases
from common.errors import DataError

# What systems and programs leave in folders, beside all names that begin with a dot; in small letters.
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "system volume information", "lost+found"}
_LITTER |= {"__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "$recycle.bin"}
_DOCUMENTS = {".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini"}
_DOCUMENTS |= {".cfg", ".log", ".html", ".htm", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".py", ".ipynb", ".sh"}
_DOCUMENTS |= {
    ".zip",
    ".tar",
    ".gz",
    ".tgz",
    ".7z",
    ".rar",
    ".mat",
    ".pkl",
    ".db",
    ".url",
    ".lnk",
    ".parquet",
    ".arrow",
}
_TITLES = {"readme", "license", "licence", "copying", "authors", "changelog", "notice", "citation", "version"}


@dataclass(slots=True, kw_only=True)
class Folder:
    """What lies in a folder, without what is hidden. Names are sorted."""

    path: Path  # as it is reached: links are not resolved
    files: list[str]  # all that is no folder: a link to nowhere too
    folders: list[Folder]
    file_count: int = 0  # with those of the folders below
    picture_count: int = 0  # of these, all but documents

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def is_flat(self) -> bool:
        """Whether a picture lies directly in it."""
        return not all(map(is_document, self.files))

    @property
    def filled(self) -> list[Folder]:
        """The folders directly in it that have a picture in them or below."""
        return [folder for folder in self.folders if folder.picture_count]

    def walk(self) -> Iterator[Folder]:
        """Yield this folder and all below it."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += folder.folders

    def all_files(self, *suffixes: str) -> list[Path]:
        """Return the files in it and below, sorted; of some endings only, in any case, where they are given."""
        files = ((folder.path, name) for folder in self.walk() for name in folder.files)
        return sorted(path / name for path, name in files if not suffixes or name.casefold().endswith(suffixes))


@dataclass(slots=True, kw_only=True)
class Tree:
    """A walked folder, and what was not entered."""

    top: Folder
    hidden: list[Path] = field(default_factory=list)  # files and folders that begin with a dot, or are litter
    leaving: list[Path] = field(default_factory=list)  # links to folders outside, which are not followed
    again: list[Path] = field(default_factory=list)  # links to a folder above, or that were followed already

    def refuse_leaving(self) -> None:
        """Raise DataError for links to folders outside: what lies there is no part of the set."""
        if self.leaving:
            raise DataError(
                f"{self.top.path} holds links to folders that do not lie inside it",
                got=count_cases("links", sorted(str(path.relative_to(self.top.path)) for path in self.leaving)),
                remedy="put what they lead to inside, or remove the links; the place itself may be a link",
            )


def classes(split: Folder) -> dict[str, Folder]:
    """Return the class folders of a split by label: their names without white space around them."""
    return {folder.name.strip(): folder for folder in split.filled}


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems leave everywhere: .DS_Store, Thumbs.db, __MACOSX."""
    return name.startswith((".", "~$")) or name.casefold() in _LITTER


def is_document(name: str) -> bool:
    """Whether a file's name says that it is no picture: labels.csv, README."""
    stem, dot, suffix = name.casefold().rpartition(".")
    return dot + suffix in _DOCUMENTS if stem else suffix in _TITLES


def read_tree(place: Path) -> Tree:
    """Walk a folder. Each link is followed once, so that the walk ends whatever links there are.

    Raises DataError for a folder that cannot be listed.
    """
    root = os.path.realpath(place)
    tree = Tree(top=Folder(path=place, files=[], folders=[]))
    followed: set[str] = set()  # links, each by where it really lies
    walked: list[Folder] = []
    waiting = [(tree.top, root, frozenset((root,)))]  # with the real path, and those of it and all folders above
    while waiting:
        folder, real, above = waiting.pop()
        walked.append(folder)
        for entry in _list(folder.path):
            if is_litter(entry.name):
                tree.hidden.append(folder.path / entry.name)
                continue
            if not _is_folder(entry):
                folder.files.append(entry.name)
                continue
            path, really = folder.path / entry.name, f"{real}/{entry.name}"
            if entry.is_symlink():
                link, really = really, os.path.realpath(path)
                if really in above or link in followed or _lies_in(root, really):
                    tree.again.append(path)
                    continue
                if not _lies_in(really, root):
                    tree.leaving.append(path)
                    continue
                followed.add(link)
            below = Folder(path=path, files=[], folders=[])
            folder.folders.append(below)
            waiting.append((below, really, above | {really}))
    _count(walked)
    return tree


def _lies_in(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def _list(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by name. Raises DataError when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"folder {folder} cannot be listed",
            got=error.strerror or error,
            remedy="make it readable, or move it out of the data set",
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link to nowhere, or to itself, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _count(walked: list[Folder]) -> None:
    """Count the files of each folder and of those below; a folder stands in `walked` after the one it is in."""
    for folder in reversed(walked):
        folder.file_count = len(folder.files) + sum(below.file_count for below in folder.folders)
        pictures = sum(not is_document(name) for name in folder.files)
        folder.picture_count = pictures + sum(below.picture_count for below in folder.folders)
