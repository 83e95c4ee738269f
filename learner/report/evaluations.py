"""The evaluations of a run folder: `evaluations.jsonl` of a run, `evaluation.json` of `learner.evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from learner.report.rows import Reader, Row, as_list, as_mapping, as_number, as_text, as_whole

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
    measures: Mapping[str, float]  # those of MEASURES, pass@k and majority@k that are on file
    intervals: Mapping[str, tuple[float, float]]  # measure -> 95 % interval, where there is one
    per_class: Mapping[str, tuple[int, int]]  # label -> (right, rows)
    confusion: tuple[tuple[str, str, int], ...]  # (label, answer, count); "" stands for an answer outside the list


def read_evaluations(reader: Reader) -> tuple[Evaluation, ...]:
    """Read `evaluations.jsonl`, sorted by step.

    Where a set was evaluated twice after one step, the later line counts. Classes and confusions are kept of the first
    and last evaluation of a set alone: nothing shows the others.
    """
    found: dict[str, dict[int, Evaluation]] = {}
    for row in reader.read_rows("evaluations.jsonl"):
        one = _parse_evaluation(row)
        of_set = found.setdefault(one.set, {})
        of_set[one.step] = one
        for step in list(of_set)[1:-1]:
            if of_set[step].per_class:
                of_set[step] = replace(of_set[step], per_class={}, confusion=())
    return tuple(sorted((one for of_set in found.values() for one in of_set.values()), key=lambda one: one.step))


def find_evaluations(node: Any, *, model: str = "", name: str = "held-out") -> Iterator[Evaluation]:
    """Yield every evaluation inside an evaluation.json, at any depth: an object with an accuracy is one."""
    if isinstance(node, list):
        for value in node:
            yield from find_evaluations(value, model=model, name=name)
    elif isinstance(node, dict):
        model = as_text(node.get("model")) or model
        if "accuracy" in node and ("rows" in node or "set" in node):
            yield _parse_evaluation(node, name=name, model=model)
            return
        for key, value in node.items():
            if key != "matrix":
                yield from find_evaluations(value, model=model, name=key)


def read_matrix(results: Row, found: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    """Return model -> set -> accuracy: the file's own matrix, or one made of several evaluations found in it."""
    matrix = {
        model: {name: as_number(value) for name, value in as_mapping(row).items()}
        for model, row in as_mapping(results.get("matrix")).items()
    }
    if matrix or len(found) < 2:
        return matrix
    for one in found:
        matrix.setdefault(one.model, {})[one.set] = one.measures.get("accuracy", math.nan)
    return matrix


def _parse_evaluation(row: Row, *, name: str = "held-out", model: str = "") -> Evaluation:
    """Parse one line; `name` and `model` stand in where the line has none of its own."""
    rows, measures = as_whole(row.get("rows")), _parse_measures(row)
    return Evaluation(
        step=as_whole(row.get("step")) or 0,
        set=as_text(row.get("set")) or name,
        model=as_text(row.get("model")) or model,
        rows=rows,
        measures=measures,
        intervals=_parse_intervals(row, measures.get("accuracy", math.nan), rows),
        per_class={
            label: (as_whole(pair[0]) or 0, as_whole(pair[1]) or 0)
            for label, pair in as_mapping(row.get("per_class")).items()
            if isinstance(pair, list) and len(pair) == 2
        },
        confusion=tuple(
            (as_text(triple[0]), as_text(triple[1]), as_whole(triple[2]) or 0)
            for triple in as_list(row.get("confusion"))
            if isinstance(triple, list) and len(triple) == 3
        ),
    )


def _parse_measures(row: Row) -> dict[str, float]:
    """`{"accuracy": 0.9, "pass_at": {"4": 0.95}}` -> `{"accuracy": 0.9, "pass@4": 0.95}`."""
    measures = {key: value for key in MEASURES if not math.isnan(value := as_number(row.get(key)))}
    for key, sign in (("pass_at", "pass@"), ("majority_at", "majority@")):
        measures |= {f"{sign}{k}": as_number(value) for k, value in as_mapping(row.get(key)).items()}
    return measures


def _parse_intervals(row: Row, accuracy: float, rows: int | None) -> dict[str, tuple[float, float]]:
    """Read the intervals on file; lines of older runs have none, so their accuracy gets Wilson's."""
    intervals = {
        key.replace("_at/", "@"): (as_number(pair[0]), as_number(pair[1]))
        for key, pair in as_mapping(row.get("intervals")).items()
        if isinstance(pair, list) and len(pair) == 2
    }
    if "accuracy" not in intervals and rows and 0 <= accuracy <= 1:
        intervals["accuracy"] = wilson_interval(accuracy, rows)
    return intervals


def wilson_interval(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share of `rows` independent trials: Wilson 1927, the score interval."""
    centre, spread = share + z * z / (2 * rows), z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    scale = 1 + z * z / rows
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
