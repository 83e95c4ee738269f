"""What of a folder of pictures is in no row, or elsewhere than one may think."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.data.formats.tree import Folder, Tree, classes
from common.data.table import count_cases


@dataclass(frozen=True, slots=True, kw_only=False)
class LayoutNotes:
    """Says what of a tree is in no row, or elsewhere than one may think: a line for each kind of thing."""

    place: Path
    tree: Tree
    top: Folder  # holds the folders of splits or classes
    folders: Mapping[str, Folder]  # of splits, by name
    splits: Mapping[str, Folder]  # what holds the classes of each
    _lines: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the lines."""
        self._say("hidden files and those of systems are left out", self._relative(self.tree.hidden))
        self._say("links to folders that are read already are left out", self._relative(self.tree.again))
        usual = {self.place, *(folder.path for folder in self.folders.values())}
        entered = {folder.path for folder in (self.top, *self.splits.values())} - usual
        self._say("folders around those of classes are entered", self._relative(entered))

        holders = list(self._holders())
        loose = [folder.path / name for folder in holders for name in folder.files]
        self._say("files beside the folders of classes are left out", self._relative(loose))
        empty = [below for folder in holders for below in folder.folders if not below.picture_count]
        self._say("folders without a picture are left out", map(self._sized, empty))
        if self.folders:
            aside = [folder for folder in self.top.filled if folder.name not in self.folders]
            self._say("folders beside the splits are left out, for they hold no class of them", map(self._sized, aside))

        self._say_nested([label for split in self.splits.values() for label in split.filled])
        return self._lines

    def _say_nested(self, labels: Sequence[Folder]) -> None:
        """Say which folders lie in those of classes; where no class holds a picture itself, they may be the classes."""
        inside = [below for label in labels for below in label.filled]
        shared = set.intersection(*(set(classes(label)) for label in labels)) if labels else set()
        if len(labels) > 1 and len(shared) > 1 and not any(label.is_flat for label in labels):
            self._say("every class folder holds the same folders, which may be the classes", sorted(shared))
        self._say("folders inside class folders are no classes of their own", self._relative(f.path for f in inside))

    def _say(self, what: str, names: Iterable[str]) -> None:
        if names := list(names):
            self._lines.append(count_cases(what, names))

    def _relative(self, paths: Iterable[Path]) -> list[str]:
        return _paths(paths, self.place)

    def _sized(self, folder: Folder) -> str:
        files = f" ({folder.file_count} file{'s' * (folder.file_count > 1)})" if folder.file_count else ""
        return _paths([folder.path], self.place)[0] + files

    def _holders(self) -> Iterator[Folder]:
        """Yield the folders that hold folders: from the place down to those that hold the classes."""
        ends = [folder.path for folder in (self.top, *self.splits.values())]
        on_the_way = {above for end in ends for above in (end, *end.parents)}
        for folder in self.tree.top.walk():
            if folder.path in on_the_way:
                yield folder


def _paths(paths: Iterable[Path], place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in paths)
