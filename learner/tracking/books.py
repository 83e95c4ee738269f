"""The books of a run, `books.jsonl`: what became of every group, and which weights were published and loaded.

One row a step, and one for each time that a step was left out. Step s trains weights s, and publishes s + 1. A group
takes about 90 bytes. `python -m learner.audit RUN` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from common.config.schema import Config
from learner.storage.files import keep_rows

BOOKS = "books.jsonl"
FORMAT = 1
TRAINED = "trained"
LOST = "lost"  # never answered: this cannot be, and the auditor says where it is


class Published(NamedTuple):
    """A version that the learner has published."""

    version: int
    checksum: str | None  # of all its bytes; None where they went by NCCL


class Loaded(NamedTuple):
    """A version that an engine has loaded."""

    engine: str
    version: int
    checksum: str | None  # of all its bytes, as the engine found them


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEntry:
    """What became of one group. Checksums are 16 hexadecimal digits."""

    prompt: str
    epoch: int  # that the prompt was drawn in: it comes once an epoch
    fate: str  # "trained", or why it was dropped
    origin: str | None  # as all below None of a group that never came back
    engine: str | None  # None of given answers too
    version: int | None  # of the oldest weights that sampled a token of it
    newest: int | None  # of the newest
    size: int  # completions
    tokens: str | None
    logprobs: str | None
    rewards: str | None


COLUMNS = tuple(item.name for item in fields(GroupEntry))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBooks:
    """One row of the books. Counts are over the whole run, after the step."""

    step: int
    skipped: bool  # the step was left out, and is taken again with other groups
    attempt: int  # starts of the run before the one that took it
    monotonic: float  # seconds, on the clock of that start's host
    dispatched: int
    trained: int
    dropped: int
    pending: tuple[int, ...]  # groups of each step that was asked ahead, the oldest first
    published: tuple[Published, ...]  # since the row before
    loads: tuple[Loaded, ...]  # since the row before
    recalled: bool  # its answers come from a checkpoint or a journal, not from engines of this start
    groups: tuple[GroupEntry, ...]  # of the step, in the order of drawing

    def row(self) -> dict[str, Any]:
        """Return it as a row of the file: groups column by column, and at the end a checksum of all of it.

        A column whose values are all equal is one value: "epoch": 0 of 32 groups.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        columns = {name: [getattr(group, name) for group in self.groups] for name in COLUMNS}
        alike = {name: column[0] for name, column in columns.items() if name != "prompt" and len({*column}) == 1}
        values["groups"] = columns | alike
        row = {"format": FORMAT, **values}
        return {**row, "seal": compute_seal(row)}


def compute_seal(row: Mapping[str, Any]) -> str:
    """Return a checksum of a row but for its seal, whatever blanks it is written with."""
    from xxhash import xxh3_64

    kept = {key: value for key, value in row.items() if key != "seal"}
    return xxh3_64(json.dumps(kept, separators=(",", ":")).encode()).hexdigest()


def read_books(row: Mapping[str, Any]) -> StepBooks:
    """Read a row of the file. Raises ValueError, TypeError or KeyError for one that no run wrote."""
    if row.get("format") != FORMAT:
        raise ValueError(f"format {row.get('format')!r}, where this version reads {FORMAT}")
    if row["seal"] != compute_seal(row):
        raise ValueError("its checksum is not its content's")
    row = {"recalled": False, **row, "groups": {"newest": row["groups"]["version"], **row["groups"]}}  # both are new
    found, size = row["groups"], len(row["groups"]["prompt"])
    columns = [found[name] if isinstance(found[name], list) else [found[name]] * size for name in COLUMNS]
    lines = zip(*columns, strict=True)
    groups = [GroupEntry(**dict(zip(COLUMNS, line, strict=True))) for line in lines]
    values = {item.name: row[item.name] for item in fields(StepBooks)}
    values["groups"] = tuple(_check_types(group) for group in groups)
    values["pending"] = tuple(_check(count, "int") for count in row["pending"])
    values["published"] = tuple(
        Published(_check(version, "int"), _check(checksum, "str | None")) for version, checksum in row["published"]
    )
    values["loads"] = tuple(
        Loaded(_check(engine, "str"), _check(version, "int"), _check(checksum, "str | None"))
        for engine, version, checksum in row["loads"]
    )
    made: StepBooks = _check_types(StepBooks(**values))
    return made


KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "str": (str,),
    "int | None": (int, NoneType),
    "str | None": (str, NoneType),
}


def _check_types(made: Any) -> Any:
    """Return a dataclass as it is. Raises TypeError or ValueError where a value is not of its field's kind."""
    for item in fields(made):
        if item.type in KINDS:
            _check(getattr(made, item.name), str(item.type))
    return made


def _check(value: Any, kind: str) -> Any:
    """Return a value as it is. Raises TypeError where it is of another kind, ValueError for a negative number."""
    if type(value) not in KINDS[kind]:
        raise TypeError(f"{value!r} is no {kind}")
    if type(value) is int and value < 0:
        raise ValueError(f"{value} is negative")
    return value


def rewind_books(path: Path, first_step: int, dropped: int) -> None:
    """Keep the rows of before a checkpoint, and of a step left out there before it. Raises OSError.

    Args:
        first_step: of the checkpoint: the next that is taken.
        dropped: groups that were dropped by then.
    """

    def is_past(row: Mapping[str, Any]) -> bool:
        step = row.get("step")
        if not isinstance(step, int):
            return False
        return step < first_step or (step == first_step and bool(row.get("skipped")) and row["dropped"] <= dropped)

    keep_rows(path, is_past)


def compute_longest(config: Config) -> float:
    """Return the seconds that may pass between two rows or events of a run, by its deadlines.

    An engine or a rank that hangs may be found at its deadline, and its replacement start; then reward workers, ranks
    and the transfer of weights may each take theirs.
    """
    rollout, learner = config.rollout, config.learner
    return (
        config.data.timeout_s
        + rollout.step_timeout_s
        + rollout.start_timeout_s
        + config.reward.timeout_s * (1 + len(config.reward.functions))
        + 2 * learner.step_timeout_s
        + learner.start_timeout_s
        + config.weights.timeout_s
    )
