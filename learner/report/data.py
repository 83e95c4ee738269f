"""What a report shows of a run, read from its folder: while it runs, after it ended, or what is left of it."""

from __future__ import annotations

import fcntl
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config.schema import keys_free_on_resume
from common.errors import RunFolderError
from learner.report.rows import Reader, Row, items, mapping, number, text, whole
from learner.report.samples import Samples, read_samples
from learner.tracking.records import STAGES

Curve = npt.NDArray[np.float64]  # (S,) one value a step, NaN where none was measured
FILES = ("config.yaml", "environment.json", "summary.json", "metrics.jsonl", "evaluations.jsonl", "events.jsonl")
RESULTS = "evaluation.json"  # of `learner.evaluate`
_COLUMNS = (
    *("step", "reward", "kl", "loss", "entropy", "grad_norm", "completion_length", "all_equal_share"),
    *("logprob_gap_mean", "logprob_gap_max", "step_seconds", "completions_per_second", "truncated_share"),
    *(f"seconds/{stage}" for stage in STAGES),
)
_KINDS = 40  # kinds of events and reward functions a run may have before the rest is only counted
MEASURES = (
    *("accuracy", "lenient", "closed_set", "closed_set_normalised", "macro_f1"),
    *("invalid_rate", "out_of_list_rate", "ece", "brier"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One line of `evaluations.jsonl`, or one set of `learner.evaluate`."""

    step: int
    set: str
    model: str  # empty within a run
    rows: int | None
    measures: Mapping[str, float]  # of MEASURES and pass@k, majority@k: those that were measured
    intervals: Mapping[str, tuple[float, float]]  # 95 %, of some of them
    per_class: Mapping[str, tuple[int, int]]  # label -> (right, rows)
    confusion: tuple[tuple[str, str, int], ...]  # (label, answer, count); an answer of "" is none of the list


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    """All events of one kind."""

    kind: str
    count: int
    first: Row  # its other fields
    seconds: float  # from the first event of the run to the first of this kind


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """One run folder."""

    folder: Path
    label: str
    outcome: str  # "finished", "interrupted", "failed", "running", or "ended without a summary"
    config: Mapping[str, Any]  # dotted keys
    environment: Row
    summary: Row
    curves: Mapping[str, Curve]  # of metrics.jsonl, "step" among them, all of one length
    evaluations: tuple[Evaluation, ...]  # by step; classes and confusions of the first and last of each set
    samples: Samples
    events: tuple[EventKind, ...]
    other_events: int  # of kinds beyond the most that are kept
    results: tuple[Evaluation, ...]  # of evaluation.json
    matrix: Mapping[str, Mapping[str, float]]  # model -> set -> accuracy, of the same
    faults: tuple[str, ...]  # files and lines that could not be read

    @property
    def steps(self) -> int:
        """Optimizer steps on file."""
        return len(self.curves["step"])

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(one.set for one in self.evaluations))

    def evaluated(self, name: str) -> list[Evaluation]:
        return [one for one in self.evaluations if one.set == name]

    @property
    def recipe(self) -> dict[str, Any]:
        """What is computed, but for the seed: runs of equal recipes are repetitions of one another."""
        free = keys_free_on_resume() | {"seed"}
        return {key: value for key, value in self.config.items() if key not in free and value is not None}


def read_run(folder: Path, label: str) -> RunData:
    """Everything a report shows of one folder.

    Raises:
        RunFolderError: there is no such folder, or nothing in it is of a run or of an evaluation.
    """
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not present & {*FILES, RESULTS}:
        raise RunFolderError(
            "no run to report on",
            got=f"{folder}: {'none of a run is in it' if folder.is_dir() else 'no such folder'}",
            remedy="name the folder of a run, as runs/latest, or one in which evaluation.json lies",
        )
    reader = Reader(folder)
    results = reader.json(RESULTS) if RESULTS in present else {}
    only_results = RESULTS in present and "metrics.jsonl" not in present
    source = Reader(folder)  # whose faults count only where a run is
    config, environment = source.yaml("config.yaml"), source.json("environment.json")
    summary = source.json("summary.json") if "summary.json" in present else {}
    curves = _curves(source)
    events, other_events = _events(source)
    evaluations = _evaluations(source)
    samples = read_samples(source, after=int(curves["step"][-1]) // 2 if len(curves["step"]) else 0)
    return RunData(
        folder=folder,
        label=label,
        outcome="evaluated" if only_results else _outcome(folder, summary),
        config=dict(_dotted(config)),
        environment=environment,
        summary=summary,
        curves=curves,
        evaluations=evaluations,
        samples=samples,
        events=events,
        other_events=other_events,
        results=(found := tuple(_results(results, model=""))),
        matrix=_matrix(results, found),
        faults=(*reader.faults, *([] if only_results else source.faults)),
    )


def wilson(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `rows` independent trials (Wilson 1927, equation for the score interval)."""
    centre, spread = share + z * z / (2 * rows), z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    scale = 1 + z * z / rows
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def harmonic(base: float, new: float) -> float:
    """H of accuracy on base and new classes; 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def _outcome(folder: Path, summary: Row) -> str:
    if _locked_by_another(folder / ".lock"):
        return "running"
    return text(summary.get("outcome")) or "ended without a summary"


def _locked_by_another(path: Path) -> bool:
    """A live process other than this one writes the run."""
    try:
        with path.open() as lock:
            if lock.read(200).split(" ")[0] == str(os.getpid()):
                return False
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _curves(reader: Reader) -> dict[str, Curve]:
    """Columns of `metrics.jsonl`: the known ones, and each reward function's."""
    columns = {name: array("d") for name in _COLUMNS}
    length = 0
    for row in reader.rows("metrics.jsonl"):
        if whole(row.get("step")) is None:
            continue
        for name in row:
            if name.startswith("rewards/") and name not in columns and len(columns) < len(_COLUMNS) + _KINDS:
                columns[name] = array("d", [math.nan] * length)
        for name, values in columns.items():
            values.append(number(row.get(name)))
        length += 1
    return {name: np.array(values) for name, values in columns.items() if name == "step" or not np.isnan(values).all()}


def _evaluations(reader: Reader) -> tuple[Evaluation, ...]:
    """By step. Of two of one set after one step the later holds; classes are kept of the first and last of a set."""
    found: dict[str, dict[int, Evaluation]] = {}
    for row in reader.rows("evaluations.jsonl"):
        one = _evaluation(row)
        of_set = found.setdefault(one.set, {})
        of_set[one.step] = one
        for step in list(of_set)[1:-1]:
            if of_set[step].per_class:
                of_set[step] = replace(of_set[step], per_class={}, confusion=())
    return tuple(sorted((one for of_set in found.values() for one in of_set.values()), key=lambda one: one.step))


def _evaluation(row: Row, *, name: str = "held-out", model: str = "") -> Evaluation:
    measures = {key: value for key in MEASURES if not math.isnan(value := number(row.get(key)))}
    for key, sign in (("pass_at", "pass@"), ("majority_at", "majority@")):
        measures |= {f"{sign}{k}": number(value) for k, value in mapping(row.get(key)).items()}
    rows = whole(row.get("rows"))
    intervals = {
        key.replace("_at/", "@"): (number(pair[0]), number(pair[1]))
        for key, pair in mapping(row.get("intervals")).items()
        if isinstance(pair, list) and len(pair) == 2
    }
    accuracy = measures.get("accuracy", math.nan)
    if "accuracy" not in intervals and rows and 0 <= accuracy <= 1:
        intervals["accuracy"] = wilson(accuracy, rows)
    return Evaluation(
        step=whole(row.get("step")) or 0,
        set=text(row.get("set")) or name,
        model=text(row.get("model")) or model,
        rows=rows,
        measures=measures,
        intervals=intervals,
        per_class={
            label: (whole(pair[0]) or 0, whole(pair[1]) or 0)
            for label, pair in mapping(row.get("per_class")).items()
            if isinstance(pair, list) and len(pair) == 2
        },
        confusion=tuple(
            (text(triple[0]), text(triple[1]), whole(triple[2]) or 0)
            for triple in items(row.get("confusion"))
            if isinstance(triple, list) and len(triple) == 3
        ),
    )


def _results(node: Any, *, model: str, name: str = "held-out") -> Iterator[Evaluation]:
    """Every evaluation within an evaluation.json, wherever it stands: what has an accuracy is one."""
    if isinstance(node, list):
        for value in node:
            yield from _results(value, model=model, name=name)
    elif isinstance(node, dict):
        model = text(node.get("model")) or model
        if "accuracy" in node and ("rows" in node or "set" in node):
            yield _evaluation(node, name=name, model=model)
            return
        for key, value in node.items():
            if key != "matrix":
                yield from _results(value, model=model, name=key)


def _matrix(results: Row, found: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    """Model -> set -> accuracy as the file says it, else of what it has of several models or sets."""
    said = {
        model: {name: number(value) for name, value in mapping(row).items()}
        for model, row in mapping(results.get("matrix")).items()
    }
    if said or len(found) < 2:
        return said
    made: dict[str, dict[str, float]] = {}
    for one in found:
        made.setdefault(one.model, {})[one.set] = one.measures.get("accuracy", math.nan)
    return made


def _events(reader: Reader) -> tuple[tuple[EventKind, ...], int]:
    """Events by kind, in the order of their firsts; and how many are of kinds that were not kept."""
    counts: dict[str, int] = {}
    firsts: dict[str, tuple[Row, float]] = {}
    began, others = math.nan, 0
    for row in reader.rows("events.jsonl"):
        kind, wall = text(row.get("kind")), number(row.get("wall"))
        began = wall if math.isnan(began) else began
        if kind not in firsts and len(firsts) == _KINDS:
            others += 1
            continue
        counts[kind] = counts.get(kind, 0) + 1
        fields = {key: value for key, value in row.items() if key not in ("kind", "wall", "monotonic")}
        firsts.setdefault(kind, (fields, wall - began))
    kinds = (
        EventKind(kind=kind, count=counts[kind], first=first, seconds=seconds)
        for kind, (first, seconds) in firsts.items()
    )
    return tuple(kinds), others


def _dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping(node).items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def labels(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, or its path where two are alike."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
