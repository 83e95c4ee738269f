"""The sets to evaluate on: the held-out rows, and those of `evaluation.sets` by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.config.schema import Config, DataConfig
from common.data.places import split_place
from common.data.sources import ExampleSource, load
from common.errors import ConfigError, DataError
from common.labels.candidates import candidates
from common.labels.closed_set import ClosedSet
from learner.evaluation.measures import BASE, HARMONIC, HELD_OUT, NEW, H, parse_measure


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """Rows to evaluate on."""

    name: str
    source: ExampleSource
    closed_set: bool  # the candidates of each row are scored too


def read_sets(config: Config, held_out: ExampleSource | None) -> dict[str, ExampleSource]:
    """Read `evaluation.sets`; the held-out rows, if there are any, come first.

    Raises:
        DataError: one cannot be read.
        ConfigError: one has a name that is taken or cannot be told from a measure of another.
    """
    found = {HELD_OUT: held_out} if held_out else {}
    for name, place in config.evaluation.sets.items():
        if name in (HELD_OUT, H) or not re.fullmatch(r"[\w.:-]+", name):
            raise ConfigError(
                "a set of evaluation.sets needs another name",
                got=repr(name),
                remedy=f"use a word; not {HELD_OUT} or {H}",
            )
        try:
            found[name] = _read_set(place, config.data, held_out)
        except DataError as error:
            raise DataError(f"evaluation set {name}: {error.what}", got=error.got, remedy=error.remedy) from error
    return found


def _read_set(place: str, data: DataConfig, held_out: ExampleSource | None) -> ExampleSource:
    """Read the rows of `PATH[@SPLIT]`; without a path a split of `data.path`, which may be the held-out one."""
    path, named = split_place(place)
    split = named or data.eval_split or "test"
    if path and path != data.path:
        return load(data.model_copy(update={"path": path, "eval_fraction": 0.0}), split=split)
    if held_out is not None and split == data.eval_split and not (data.eval_fraction or data.eval_path):
        return held_out  # decoded and evaluated once
    return load(data, split=split)


def make_set(
    name: str, source: ExampleSource, closed_set: ClosedSet, config: Config, *, say: Callable[[str], None]
) -> EvaluationSet:
    """Make a set of rows, with their candidates scored if `evaluation.closed_set` wants it and they can be.

    Raises:
        DataError: it is wanted, and a row offers no list or a candidate cannot be said.
    """
    scored = _scores_candidates(name, source, closed_set, config, say)
    return EvaluationSet(name=name, source=source, closed_set=scored)


def _scores_candidates(
    name: str, source: ExampleSource, closed_set: ClosedSet, config: Config, say: Callable[[str], None]
) -> bool:
    """Return whether candidates are to be scored; say why not where they would be by default."""
    wanted = config.evaluation.closed_set
    if wanted is False or (wanted is None and config.data.mode != "no_think"):
        return False
    try:
        _check_candidates(name, source, closed_set)
    except DataError as error:
        if wanted:
            raise
        say(f"{name}: no closed-set accuracy: {error.what} ({error.got})")
        return False
    return True


def _check_candidates(name: str, source: ExampleSource, closed_set: ClosedSet) -> None:
    offers = {outline.problem: candidates(outline.problem) for outline in source.outlines}
    if open_ended := [outline.id for outline in source.outlines if not offers[outline.problem]]:
        raise DataError(
            f"{len(open_ended)} of {len(source)} questions of set {name} offer no list to choose from",
            got=f"the first is of {open_ended[0]}",
            remedy="evaluate an open-ended set without evaluation.closed_set",
        )
    for offered in offers.values():
        closed_set.answers(offered or ())


def check_best_by(config: Config, sets: Sequence[EvaluationSet]) -> None:
    """Raise ConfigError when `checkpoint.best_by` names a measure that these sets do not have, or a run is to end by
    it and there are no sets."""
    if not sets and config.evaluation.stop_after is not None:
        raise ConfigError(
            f"evaluation.stop_after = {config.evaluation.stop_after}, and nothing is evaluated",
            got=f"data.eval_split = {config.data.eval_split}, and no evaluation.sets",
            remedy="name held-out rows, or leave evaluation.stop_after out",
        )
    if not sets:
        return  # and no checkpoint is the best
    name, measure = parse_measure(config.checkpoint.best_by)
    measured = {one.name: one.closed_set for one in sets}
    if BASE in measured and NEW in measured:
        measured[H] = measured[BASE] and measured[NEW]
    choices = [
        f"{one}/{key}" for one, closed in measured.items() for key in HARMONIC if closed or not key.startswith("closed")
    ]
    if f"{name}/{measure}" not in choices:
        raise ConfigError(
            f"checkpoint.best_by = {config.checkpoint.best_by} is not measured",
            got="measured: " + ", ".join(choices),
            remedy=f"choose one of these ({HELD_OUT}/ may be left out), or H, or name the set in evaluation.sets",
        )
