"""What only all rows together show: one picture under two labels, copies across splits, missing pictures, one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.config.schema import DataConfig
from common.data.content.copies import Clash, Copies, Part, describe_pairs, name_row
from common.data.formats.split_names import says_train
from common.data.places import split_place
from common.data.sources import ExampleSource
from common.errors import DataError, clip
from common.labels.candidates import candidates

_NAMED = 3  # rows named in a line; the rest are counted


def survey(parts: Sequence[Part], data: DataConfig, *, say: Callable[[str], None]) -> None:
    """Say what is doubtful about the rows of these splits as a whole.

    Raises DataError for rows that one can learn nothing from: a single class; or one picture under two labels, unless
    `data.check_copies` is false.
    """
    for part in parts:
        _count_missing(part.source, say)
        _check_classes(part, say)
    copies = Copies(parts, mode=data.mode, aliases=data.aliases)
    _check_clashes(copies, data, say)
    _count_copies(copies, say)


def divide_for_run(train: ExampleSource, sets: Mapping[str, ExampleSource]) -> list[Part]:
    """Return the parts of a run: the split to train on, and each set to evaluate on once."""
    others = {id(source): source for source in sets.values()}
    return [
        Part(source=train, trains=True),
        *(Part(source=source, trains=False, says_train=says_train(source.split) is True) for source in others.values()),
    ]


def divide_by_name(sources: Sequence[ExampleSource], place: str) -> list[Part]:
    """Return the splits of a place as parts that are evaluated on where their names say so.

    The only split of a place may go by the name of the place: `test.parquet`.
    """
    path, split = split_place(place)
    whole = says_train(Path(path).stem) if len(sources) == 1 and split is None else None
    said = [says_train(source.split) if whole is None else whole for source in sources]
    return [
        Part(source=source, trains=one is not False, says_train=one is True, place=place)
        for source, one in zip(sources, said, strict=True)
    ]


def _count_missing(source: ExampleSource, say: Callable[[str], None]) -> None:
    if "image" not in source.columns:
        return
    without = [outline.id for outline in source.outlines if not outline.picture]
    if without:
        more = " ..." if len(without) > _NAMED else ""
        say(
            f"warning: {len(without)} of {len(source)} rows of {source.name} have no picture: "
            f"{', '.join(without[:_NAMED])}{more}"
        )


def _check_classes(part: Part, say: Callable[[str], None]) -> None:
    """Say that a split has one label. Raises DataError where it is to be trained on, and offers no other either."""
    source = part.source
    if len(source.labels) > 1:
        return
    label = source.labels[0]
    others = any(set(candidates(problem) or ()) - {label} for problem in {row.problem for row in source.outlines})
    if part.trains and not others:
        raise DataError(
            f"all rows of {source.name} have one class, and nothing can be learned from them",
            got=f"{len(source)} rows with label {clip(label)!r}, and no question that offers another",
            remedy="give pictures of two classes at least; of a folder, the one whose sub-folders are the classes",
        )
    said = ", though questions offer others" if others else ""
    say(f"warning: all rows of {source.name} have one label, {clip(label)!r}{said}")


def _check_clashes(copies: Copies, data: DataConfig, say: Callable[[str], None]) -> None:
    """Say where one picture has two labels. Raises DataError where one of them is trained on and must be wrong."""
    wrong: list[Clash] = []
    doubtful: list[Clash] = []
    evaluated: list[Clash] = []
    for clash in copies.find_clashes():
        trains = any(copies.parts[ref.part].trains for ref in (clash.one, clash.other))
        (doubtful if not clash.offered else wrong if trains else evaluated).append(clash)
    if wrong and data.check_copies:
        raise DataError(
            f"{_count(wrong)} two labels, and one of them is wrong",
            got=_describe(copies, wrong),
            remedy="remove or correct these rows, or set data.check_copies to false to train on them as they are",
        )
    for clashes, what in ((wrong, ""), (evaluated, ""), (doubtful, " that no list offers together")):
        if clashes:
            say(f"warning: {_count(clashes)} two labels{what}: {_describe(copies, clashes)}")


def _count(clashes: Sequence[Clash]) -> str:
    return "1 picture has" if len(clashes) == 1 else f"{len(clashes)} pictures have"


def _describe(copies: Copies, clashes: Sequence[Clash]) -> str:
    lines = [
        " and ".join(
            f"{clip(copies.outline(ref).label)!r} in {name_row(copies, ref)}" for ref in (clash.one, clash.other)
        )
        for clash in clashes[:_NAMED]
    ]
    return "; ".join([*lines, *([f"and {len(clashes) - _NAMED} more"] if len(clashes) > _NAMED else [])])


def _count_copies(copies: Copies, say: Callable[[str], None]) -> None:
    """Say how many rows of a split show a picture again, or one that is trained on."""
    for number, part in enumerate(copies.parts):
        source = part.source
        if repeats := copies.find_repeats(number):
            say(
                f"note: {len(repeats)} of {len(source)} rows of {source.name} repeat another: "
                f"{describe_pairs(copies, repeats)}"
            )
        trained = [other for other in range(len(copies.parts)) if _is_leak(copies.parts, number, other)]
        if shared := copies.find_shared(number, trained):
            what = "are also in another set" if part.trains else "are trained on"
            say(
                f"warning: {len(shared)} of {len(source)} rows of {source.name} show pictures that {what}: "
                f"{describe_pairs(copies, shared)}"
            )


def _is_leak(parts: Sequence[Part], number: int, other: int) -> bool:
    """Whether no row of part `number` should show a picture of part `other`."""
    one, there = parts[number], parts[other]
    if other == number or not there.trains:
        return False
    if not one.trains:
        return not one.says_train
    return other < number and not (one.says_train and one.place == there.place)
