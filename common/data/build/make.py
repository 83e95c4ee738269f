"""From a collection to a finished folder with all splits and the card, or to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

from common.data.build.card import card
from common.data.build.collection import Collection, Picture
from common.data.build.copies import check_copies
from common.data.build.fewshot import few_shot, shuffle, train_and_test
from common.data.build.questions import Choose, Policy
from common.data.build.stored import Reader
from common.data.build.write import Row, Written, write_split
from common.data.draws import generator
from common.data.faults import refuse
from common.data.split import base_and_new
from common.errors import DataError, clip
from common.labels.candidates import with_candidates

TEST_FRACTION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a set is made of a collection."""

    name: str
    question: str
    shots: int | None  # of each class; None: every picture there is
    seed: int
    policy: Policy
    choose: Choose
    test_fraction: float | None  # where the source has no test split; None: TEST_FRACTION, or none where it is no row
    base_new: bool
    max_side: int | None  # of stored pictures; None: any
    max_megapixels: float
    keep_two_labels: bool = False  # warn of a picture under two labels, and write it


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The pictures of a split, in their order, and the classes its questions list from."""

    pictures: Sequence[Picture]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The set that was made."""

    classes: int
    written: dict[str, Written]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def build(collection: Collection, plan: Plan, out: Path, argv: Sequence[str]) -> Built:
    """Write the set into `out`, which must not exist or be empty. The same input and plan give the same bytes.

    Args:
        argv: arguments of the command, for the card.

    Raises:
        DataError: `out` is taken or cannot be written, or pictures cannot be read, all of them counted; nothing is
            left behind then.
    """
    try:
        if out.is_file() or (out.exists() and any(out.iterdir())):
            raise DataError(
                f"{out} is there already", got="a file or folder with something in it", remedy="choose another"
            )
        return _build(collection, plan, out, argv)
    except OSError as error:  # of the folder: pictures that cannot be read raise DataError
        raise DataError(
            f"{out} cannot be written",
            got=error.strerror or error,
            remedy="free space there, or choose a folder you can write",
        ) from error


def _build(collection: Collection, plan: Plan, out: Path, argv: Sequence[str]) -> Built:
    """Write everything into a folder beside `out`, which becomes `out` once it is whole."""
    read = Reader(max_side=plan.max_side, max_megapixels=plan.max_megapixels)
    splits, notes = _draw(collection, plan, read)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "set"
        made.mkdir()
        written, rewritten = _write(made, splits, plan, read)
        _refuse_one_class(collection, plan.name)
        train, test = (splits[name].pictures if name in splits else () for name in ("train", "test"))
        copies, warnings = check_copies(plan.name, train, test, read.digests, keep=plan.keep_two_labels)
        said = (*collection.notes, *notes, *copies, *rewritten)
        built = Built(classes=len(collection.labels), written=written, notes=said, warnings=tuple(warnings))
        offered = {name: len(split.labels) for name, split in splits.items()}
        (made / "README.md").write_text(
            card(plan.name, argv, _describe(plan, built), written, offered), encoding="utf-8", errors="backslashreplace"
        )
        made.replace(out)
    return built


def _refuse_one_class(collection: Collection, name: str) -> None:
    if len(collection.labels) == 1:
        raise DataError(
            f"{name} would have one class, and nothing can be learned from it",
            got=f"{len(collection.train) + len(collection.test)} pictures, all of class {clip(collection.labels[0])!r}",
            remedy="give pictures of two classes at least; of a folder, the one whose sub-folders are the classes",
        )


def _draw(collection: Collection, plan: Plan, read: Reader) -> tuple[dict[str, Split], list[str]]:
    """Return the splits by name, and notes. Raises DataError where the share asked for is no picture."""
    fraction = TEST_FRACTION if plan.test_fraction is None else plan.test_fraction
    train, test = train_and_test(collection, fraction, read.look)
    notes: list[str] = []
    if fraction and not test:
        held = f"{len(train)} pictures of {len(collection.labels)} classes, of which each keeps one to train on"
        if plan.test_fraction is not None:
            raise DataError(
                f"--test-fraction {fraction:g} holds out no picture",
                got=held,
                remedy="raise it, give more pictures, or pass --test-fraction 0",
            )
        notes.append(f"no picture is held out for test, a share of {fraction:g} of {held}")
    if lacking := sorted(set(collection.labels) - {picture.label for picture in train}):
        notes.append(f"{len(lacking)} classes have no picture to train on: {', '.join(lacking[:3])}")
    if plan.shots is not None:
        train, few = few_shot(train, plan.shots, plan.seed)
        notes += few
    halves = {"train": shuffle(train, plan.seed, "train"), "test": shuffle(test, plan.seed, "test")}
    splits = {name: Split(pictures=found, labels=collection.labels) for name, found in halves.items() if found}
    return splits | (dict(_halves_by_class(halves, collection.labels)) if plan.base_new else {}), notes


def _halves_by_class(halves: dict[str, list[Picture]], labels: tuple[str, ...]) -> Iterator[tuple[str, Split]]:
    """Yield base_train, base_test and new_test, as far as they have pictures."""
    base, new = base_and_new(labels)
    for name, split, kept in (("base_train", "train", base), ("base_test", "test", base), ("new_test", "test", new)):
        known = set(kept)
        if found := [picture for picture in halves[split] if picture.label in known]:
            yield name, Split(pictures=found, labels=kept)


def _write(folder: Path, splits: dict[str, Split], plan: Plan, read: Reader) -> tuple[dict[str, Written], list[str]]:
    """Write every split. Return the files by split, and notes."""
    written = {name: write_split(folder, name, list(_rows(name, split, plan)), read) for name, split in splits.items()}
    pictures = {picture for split in splits.values() for picture in split.pictures}
    faults = sorted(((picture.name, fault) for picture, fault in read.faults.items()), key=itemgetter(0))
    refuse(plan.name, len(pictures), faults)
    how = f"scaled down to {plan.max_side} pixels or " if plan.max_side else ""
    kinds = [
        (read.moving & pictures, "pictures have several frames or pages: the first is taken"),
        (read.rewritten, f"pictures were {how}written anew as PNG or JPEG"),
    ]
    return written, [f"{len(found)} of {len(pictures)} {what}" for found, what in kinds if found]


def _rows(name: str, split: Split, plan: Plan) -> Iterator[Row]:
    whole = with_candidates(plan.question, split.labels)  # one text for all rows: of 10,000 classes it has 120 kB
    for picture in split.pictures:
        draw = generator("candidates", plan.seed, name, picture.path)
        listed = plan.choose(picture.label, split.labels, draw)
        problem = whole if listed is split.labels else with_candidates(plan.question, listed)
        yield Row(picture=picture, problem=problem)


def _describe(plan: Plan, built: Built) -> dict[str, object]:
    """Return the facts of the set for its card."""
    return {
        "classes": built.classes,
        "shots": plan.shots or "all",
        "seed": plan.seed,
        "candidates": plan.policy,
        "question": plan.question,
        "notes": [*built.warnings, *built.notes],
    }
