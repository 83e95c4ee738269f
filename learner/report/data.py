"""Read a run folder for the report: while the run goes on, after it ended, or what is left of it."""

from __future__ import annotations

import fcntl
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config.schema import keys_free_on_resume
from common.errors import RunFolderError
from learner.report.evaluations import Evaluation, find_evaluations, read_evaluations, read_matrix
from learner.report.histogram import add_counts
from learner.report.rows import Reader, Row, as_mapping, as_number, as_text, as_whole
from learner.report.samples import Samples, read_samples
from learner.tracking.records import STAGES, list_unmeasured, name_learnt

Curve = npt.NDArray[np.float64]  # (S,) one value a step, NaN where none was measured
FILES = ("config.yaml", "environment.json", "summary.json", "metrics.jsonl", "evaluations.jsonl", "events.jsonl")
RESULTS = "evaluation.json"  # what `learner.evaluate` leaves
_COLUMNS = (
    *("step", "reward", "kl", "loss", "entropy", "grad_norm", "completion_length", "zero_std_share"),
    *("logprob_gap_mean", "logprob_gap_max", "step_seconds", "completions_per_second", "truncated_share"),
    *("solve_rates/hard", "solve_rates/easy", "listed_mass"),
    *(f"seconds/{stage}" for stage in STAGES),
)
_OLD_NAMES = {"zero_std_share": "all_equal_share"}  # columns of runs from before they were renamed
_KINDS = 40  # kinds of events, and reward functions, before the rest is only counted


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    """All events of one kind."""

    kind: str
    count: int
    first: Row  # fields of the first one, without its kind and times
    last: Row
    seconds: float  # from the first event of the run to the first of this kind


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """One run folder."""

    folder: Path
    label: str
    outcome: str  # "finished", "interrupted", "failed", "running", "evaluated" or "ended without a summary"
    config: Mapping[str, Any]  # dotted key -> value
    environment: Row
    summary: Row
    curves: Mapping[str, Curve]  # column of metrics.jsonl -> values, "step" among them, all of one length
    gap_counts: Mapping[int, Curve]  # lag -> sampled tokens by their log-prob gap, over all steps
    evaluations: tuple[Evaluation, ...]  # by step; classes and confusions of the first and last of each set
    samples: Samples
    events: tuple[EventKind, ...]
    other_events: int  # events of kinds beyond the first _KINDS
    results: tuple[Evaluation, ...]  # out of evaluation.json
    matrix: Mapping[str, Mapping[str, float]]  # model -> set -> accuracy, out of evaluation.json
    faults: tuple[str, ...]  # files and lines that could not be read

    @property
    def steps(self) -> int:
        """Count the optimizer steps on file."""
        return len(self.curves["step"])

    @property
    def sets(self) -> list[str]:
        """Name the evaluated sets, in the order they were first evaluated."""
        return list(dict.fromkeys(one.set for one in self.evaluations))

    def evaluations_of(self, name: str) -> list[Evaluation]:
        """Return the evaluations of one set, by step."""
        return [one for one in self.evaluations if one.set == name]

    @property
    def method(self) -> str:
        """Return "grpo", "exact" or "sft"; a configuration from before there was a choice means GRPO."""
        return as_text(self.config.get("method")) or "grpo"

    @property
    def learnt(self) -> str:
        """Name what the run learns from: "completions", "given answers" or both."""
        return name_learnt(samples=samples_answers(self.config), given=self.method != "grpo")

    @property
    def recipe(self) -> dict[str, Any]:
        """Return every key that decides a result, except `seed`: runs of equal recipes repeat one another."""
        free = keys_free_on_resume() | {"seed"}
        return {key: value for key, value in self.config.items() if key not in free and value is not None}


def read_run(folder: Path, label: str) -> RunData:
    """Read everything the report shows of one folder.

    Raises:
        RunFolderError: there is no such folder, or nothing in it is of a run or of an evaluation.
    """
    present = _list_files(folder)

    # A folder of `learner.evaluate` alone lacks a run's files, and that is no fault.
    of_results, of_run = Reader(folder), Reader(folder)
    results = of_results.read_json(RESULTS) if RESULTS in present else {}
    found = tuple(find_evaluations(results))
    only_results = RESULTS in present and "metrics.jsonl" not in present

    config = dict(_flatten(of_run.read_yaml("config.yaml")))
    environment = of_run.read_json("environment.json")
    summary = of_run.read_json("summary.json") if "summary.json" in present else {}
    curves, gap_counts = _read_curves(of_run, left_out=_find_unmeasured(config))
    events, other_events = _read_events(of_run)
    evaluations = read_evaluations(of_run)
    samples = read_samples(of_run, after=int(curves["step"][-1]) // 2 if len(curves["step"]) else 0)
    return RunData(
        folder=folder,
        label=label,
        outcome="evaluated" if only_results else _read_outcome(folder, summary),
        config=config,
        environment=environment,
        summary=summary,
        curves=curves,
        gap_counts=gap_counts,
        evaluations=evaluations,
        samples=samples,
        events=events,
        other_events=other_events,
        results=found,
        matrix=read_matrix(results, found),
        faults=(*of_results.faults, *([] if only_results else of_run.faults)),
    )


def _list_files(folder: Path) -> set[str]:
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not present & {*FILES, RESULTS}:
        raise RunFolderError(
            "no run to report on",
            got=f"{folder}: {'no file of a run is in it' if folder.is_dir() else 'no such folder'}",
            remedy="name the folder of a run, as runs/latest, or one that holds an evaluation.json",
        )
    return present


def samples_answers(config: Mapping[str, Any]) -> bool:
    """Return whether engines sample at least part of what a run learns from, by its dotted configuration."""
    method = config.get("method")
    return method not in ("exact", "sft") or (method == "exact" and as_number(config.get("exact.sampled_share")) > 0)


def _find_unmeasured(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the columns in which a run of this dotted configuration measures nothing."""
    reference, lists = bool(config.get("learner.beta", 1)), config.get("method") == "exact"
    return list_unmeasured(samples=samples_answers(config), reference=reference, lists=lists)


def _read_outcome(folder: Path, summary: Row) -> str:
    if _is_locked_by_another(folder / ".lock"):
        return "running"
    return as_text(summary.get("outcome")) or "ended without a summary"


def _is_locked_by_another(path: Path) -> bool:
    """Return whether a live process other than this one writes the run."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open() as lock:
            if lock.read(200).split(" ")[0] == str(os.getpid()):
                return False
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except Exception:  # noqa: BLE001  # the file may be anybody's
        return False
    return False


def _read_curves(reader: Reader, *, left_out: frozenset[str]) -> tuple[dict[str, Curve], dict[int, Curve]]:
    """Read the known columns of `metrics.jsonl`, and one for each reward function; a column of nothing is left out.

    Also returns the tokens by their log-prob gap, of each lag over all steps.
    """
    gap_counts: dict[int, Curve] = {}
    columns = {name: array("d") for name in _COLUMNS if name not in left_out}
    most, length = len(columns) + _KINDS, 0
    for row in reader.read_rows("metrics.jsonl"):
        if as_whole(row.get("step")) is None:
            continue
        for name in row:
            if name.startswith("rewards/") and name not in columns and len(columns) < most:
                columns[name] = array("d", [math.nan] * length)
        for name, values in columns.items():
            values.append(as_number(row.get(name, row.get(_OLD_NAMES.get(name, name)))))
        if "logprob_gap_max" not in left_out:
            add_counts(gap_counts, row)
        length += 1
    curves = {name: np.array(own) for name, own in columns.items() if name == "step" or not np.isnan(own).all()}
    return curves, gap_counts


def _read_events(reader: Reader) -> tuple[tuple[EventKind, ...], int]:
    """Read events by kind, in the order of their firsts, and count those of kinds beyond the first _KINDS."""
    counts: dict[str, int] = {}
    firsts: dict[str, tuple[Row, float]] = {}
    lasts: dict[str, Row] = {}
    began, others = math.nan, 0
    for row in reader.read_rows("events.jsonl"):
        kind, wall = as_text(row.get("kind")), as_number(row.get("wall"))
        began = wall if math.isnan(began) else began
        if kind not in firsts and len(firsts) == _KINDS:
            others += 1
            continue
        counts[kind] = counts.get(kind, 0) + 1
        fields = {key: value for key, value in row.items() if key not in ("kind", "wall", "monotonic")}
        firsts.setdefault(kind, (fields, wall - began))
        lasts[kind] = fields
    kinds = (
        EventKind(kind=kind, count=counts[kind], first=first, last=lasts[kind], seconds=seconds)
        for kind, (first, seconds) in firsts.items()
    )
    return tuple(kinds), others


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"data": {"mode": "think"}}` -> `("data.mode", "think")`."""
    for key, value in as_mapping(node).items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def label_runs(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its own, or its path where two are alike."""
    names = [Path(os.path.realpath(folder)).name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
