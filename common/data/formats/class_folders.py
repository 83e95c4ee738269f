"""A folder of images: the name of a sub-folder is the label of what lies in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from common.data.formats.layout import Layout, read_layout
from common.data.formats.split_names import OWN_SPLITS
from common.data.formats.tree import Tree, classes
from common.data.table import Opener, Table, count_cases
from common.labels.candidates import check_question, with_candidates


def class_folders(tree: Tree, question: str) -> dict[str, Opener]:
    """Return the splits of a folder of class folders, which may stand in folders named as splits.

    The question of every split lists every class.

    Raises DataError as `read_layout` does, and for a question that no list can follow.
    """
    check_question(question)
    layout = read_layout(tree)
    problem = with_candidates(question, layout.labels)
    return {name: partial(_open, tree.top.path, layout, name, problem) for name in layout.splits}


def _open(place: Path, layout: Layout, name: str, problem: str, split: str) -> Table:
    """List the pictures of split `name`; `problem` is the question of every row."""
    folder = layout.splits[name]
    # Every file, whatever its suffix: one that is no image is refused by name later.
    rows = [
        {"problem": problem, "image": image, "solution": label}
        for label, pictures in classes(folder).items()
        for image in pictures.all_files()
    ]
    more = {
        OWN_SPLITS: layout.offered,
        "classes without a picture to train on": layout.untrained,
    }
    return Table(
        name=f"{folder.path} ({split})",
        split=split,
        columns=("problem", "image", "solution"),
        rows=rows,
        root=place,
        notes=(*layout.notes, *(count_cases(what, cases) for what, cases in more.items() if cases)),
    )
