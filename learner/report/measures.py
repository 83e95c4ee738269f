"""Tabulate evaluations for the report: before and after, base and new classes, worst classes, confusions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from learner.evaluation.measures import harmonic_mean
from learner.report.data import RunData
from learner.report.evaluations import Evaluation
from learner.report.format import NOTHING, format_number, shorten_name

_CLASSES, _PAIRS = 12, 12  # rows of a table before the rest is counted
_LESS_IS_BETTER = frozenset({"invalid_rate", "out_of_list_rate", "ece", "brier"})
_NAMES = {
    "accuracy": "accuracy, strict",
    "lenient": "accuracy, lenient",
    "closed_set": "accuracy, closed set",
    "closed_set_normalised": "closed set, per token",
    "macro_f1": "macro F1",
    "invalid_rate": "invalid answers",
    "out_of_list_rate": "answers outside the list",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
}


def describe_headline(found: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the accuracy of one set, first and last."""
    first, last = found[0], found[-1]
    return {
        "set": shorten_name(first.set),
        "rows": last.rows,
        "before": format_measure(first, "accuracy"),
        "after": format_measure(last, "accuracy") if len(found) > 1 else None,
    }


def compare_first_and_last(found: Sequence[Evaluation]) -> dict[str, Any]:
    """Return every measure of one set: first, last and best."""
    first, last = found[0], found[-1]
    measures = []
    for key in dict.fromkeys([*last.measures, *first.measures]):
        best = _find_best([one for one in found if key in one.measures], key)
        measures.append(
            {
                "name": _NAMES.get(key, shorten_name(key)),
                "before": format_measure(first, key),
                "after": format_measure(last, key) if len(found) > 1 else None,
                "best": format_number(best.measures[key]),
                "best_step": best.step,
            }
        )
    return {
        "set": shorten_name(first.set),
        "rows": last.rows,
        "first": first.step,
        "last": last.step,
        "measures": measures,
    }


def _find_best(found: Sequence[Evaluation], key: str) -> Evaluation:
    sign = -1 if key in _LESS_IS_BETTER else 1
    return max(found, key=lambda one: sign * one.measures[key])


def format_measure(one: Evaluation, key: str) -> dict[str, str] | None:
    """Format a measure and its interval; None where it was not measured."""
    if key not in one.measures:
        return None
    low, high = one.intervals.get(key, (math.nan, math.nan))
    known = not math.isnan(low) and not math.isnan(high)
    return {"value": format_number(one.measures[key]), "interval": f"{low:.3f}{NOTHING}{high:.3f}" if known else ""}


def find_base_and_new(run: RunData) -> Iterator[dict[str, str]]:
    """Yield Base, New and H of every pair of base and new classes: before and after the run, and in evaluation.json."""
    firsts = {one.set: one for one in reversed(run.evaluations)}
    lasts = {one.set: one for one in run.evaluations}
    tables = [("before", firsts)] + ([("after", lasts)] if lasts != firsts else [])
    tables += [
        (model or "evaluated", {one.set: one for one in run.results if one.model == model})
        for model in _find_models(run)
    ]
    for title, table in tables:
        for base, new, data in _pair_base_and_new(table):
            numbers = {"base": base, "new": new, "h": float(harmonic_mean(np.float64(base), np.float64(new)))}
            yield {
                "what": shorten_name(title),
                "set": shorten_name(data),
                **{key: format_number(number) for key, number in numbers.items()},
            }


def _pair_base_and_new(table: dict[str, Evaluation]) -> Iterator[tuple[float, float, str]]:
    """Yield accuracy on base classes, accuracy on new ones, and the data set's name.

    A pair is two sets named `base` and `new`, or `X@base_test` and `X@new_test`.
    """
    for base, found in table.items():
        for end, other in (("base_test", "new_test"), ("base", "new")):
            stem = base.removesuffix(end)
            if stem != base and f"{stem}{other}" in table:
                of_base, of_new = found.measures, table[f"{stem}{other}"].measures
                name = stem.rstrip("@/.:-_") or "own data"
                yield of_base.get("accuracy", math.nan), of_new.get("accuracy", math.nan), name
                break


def tabulate_models(run: RunData) -> list[dict[str, Any]]:
    """Return a table for each evaluated model: one row for each set, one column for each measure."""
    return [_tabulate_model(model, [one for one in run.results if one.model == model]) for model in _find_models(run)]


def _find_models(run: RunData) -> list[str]:
    return list(dict.fromkeys(one.model for one in run.results))


def _tabulate_model(model: str, found: Sequence[Evaluation]) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for one in found for key in one.measures))
    rows = [
        {
            "set": shorten_name(one.set),
            "rows": one.rows or NOTHING,
            "values": [format_measure(one, key) for key in keys],
        }
        for one in found
    ]
    return {
        "model": shorten_name(model),
        "measures": [_NAMES.get(key, shorten_name(key)) for key in keys],
        "sets": rows,
    }


def find_last_with_classes(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the latest evaluation of the first set that kept its classes; None without one."""
    return next((one for one in reversed(evaluations) if one.set == evaluations[0].set and one.per_class), None)


def list_worst_classes(last: Evaluation, first: Evaluation | None) -> dict[str, Any]:
    """Return the classes of lowest accuracy: rows right before and after, and the most common mistake."""
    wrong = [(right / rows, label) for label, (right, rows) in last.per_class.items() if rows > right >= 0]
    instead: dict[str, tuple[int, str]] = {}
    for label, answer, count in last.confusion:
        if answer != label:
            instead[label] = max(instead.get(label, (0, "")), (count, answer))
    rows = []
    for _, label in sorted(wrong)[:_CLASSES]:
        count, answer = instead.get(label, (0, ""))
        rows.append(
            {
                "label": shorten_name(label),
                "after": _format_share(last, label),
                "before": _format_share(first, label) if first else "",
                "instead": f"{_name_answer(answer)} ({count})" if count else "",
            }
        )
    more = max(0, len(wrong) - _CLASSES)
    return {"rows": rows, "set": shorten_name(last.set), "step": last.step, "all": len(last.per_class), "more": more}


def list_confusions(last: Evaluation, left_out: list[str]) -> list[tuple[str, str, int]]:
    """Return the most common mistakes as (label, answer, count); note how many are left out."""
    wrong = sorted((one for one in last.confusion if one[0] != one[1]), key=lambda one: -one[2])
    if len(wrong) > _PAIRS:
        left_out.append(f"{len(wrong) - _PAIRS} rarer confusions")
    return [(shorten_name(label), _name_answer(answer), count) for label, answer, count in wrong[:_PAIRS]]


def _name_answer(text: str) -> str:
    return shorten_name(text) if text else "outside the list"


def _format_share(one: Evaluation, label: str) -> str:
    return "/".join(map(str, one.per_class[label])) if label in one.per_class else NOTHING
