"""What a report says of evaluations: before and after, base and new classes, worst classes, confusions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from learner.report.data import Evaluation, RunData, harmonic
from learner.report.format import NOTHING, form, name

_CLASSES, _PAIRS = 12, 12  # rows before the rest is counted
_LESS_IS_BETTER = frozenset({"invalid_rate", "out_of_list_rate", "ece", "brier"})
_NAMES = {
    "accuracy": "accuracy, strict",
    "lenient": "accuracy, lenient",
    "closed_set": "accuracy, closed set",
    "closed_set_normalised": "closed set, per token",
    "macro_f1": "macro F1",
    "invalid_rate": "invalid answers",
    "out_of_list_rate": "answers out of the list",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
}


def headline(found: Sequence[Evaluation]) -> dict[str, Any]:
    """Accuracy of one set, first and last."""
    first, last = found[0], found[-1]
    return {
        "set": name(first.set),
        "rows": last.rows,
        "before": read_measure(first, "accuracy"),
        "after": read_measure(last, "accuracy") if len(found) > 1 else None,
    }


def before_after(found: Sequence[Evaluation]) -> dict[str, Any]:
    """Every measure of one set, first, last and best."""
    first, last = found[0], found[-1]
    measures = []
    for key in dict.fromkeys([*last.measures, *first.measures]):
        best = _best([one for one in found if key in one.measures], key)
        measures.append(
            {
                "name": _NAMES.get(key, name(key)),
                "before": read_measure(first, key),
                "after": read_measure(last, key) if len(found) > 1 else None,
                "best": form(best.measures[key]),
                "best_step": best.step,
            }
        )
    return {"set": name(first.set), "rows": last.rows, "first": first.step, "last": last.step, "measures": measures}


def _best(found: Sequence[Evaluation], key: str) -> Evaluation:
    sign = -1 if key in _LESS_IS_BETTER else 1
    return max(found, key=lambda one: sign * one.measures[key])


def read_measure(one: Evaluation, key: str) -> dict[str, str] | None:
    """A measure and its interval; None where it was not measured."""
    if key not in one.measures:
        return None
    low, high = one.intervals.get(key, (math.nan, math.nan))
    known = not math.isnan(low) and not math.isnan(high)
    return {"value": form(one.measures[key]), "interval": f"{low:.3f}{NOTHING}{high:.3f}" if known else ""}


def halves(run: RunData) -> Iterator[dict[str, str]]:
    """Base, New and H of sets that are halves of one, within the run and in what was evaluated after it."""
    firsts = {one.set: one for one in reversed(run.evaluations)}
    lasts = {one.set: one for one in run.evaluations}
    tables = [("before", firsts)] + ([("after", lasts)] if lasts != firsts else [])
    tables += [
        (model or "evaluated", {one.set: one for one in run.results if one.model == model}) for model in _models(run)
    ]
    for title, table in tables:
        for base, new, data in _pairs_of_halves(table):
            numbers = {"base": base, "new": new, "h": harmonic(base, new)}
            yield {"what": name(title), "set": name(data), **{key: form(number) for key, number in numbers.items()}}


def _pairs_of_halves(table: dict[str, Evaluation]) -> Iterator[tuple[float, float, str]]:
    """Accuracy on base and on new classes, and of what data: sets named base and new, or …base_test and …new_test."""
    for base in table:
        for end, other in (("base_test", "new_test"), ("base", "new")):
            stem = base.removesuffix(end)
            if stem != base and f"{stem}{other}" in table:
                pair = (table[one].measures.get("accuracy", math.nan) for one in (base, f"{stem}{other}"))
                yield *pair, stem.rstrip("@/.:-_") or "own data"  # type: ignore[misc]  # two of them
                break


def by_model(run: RunData) -> list[dict[str, Any]]:
    """Of each model that was evaluated, one row a set and one column a measure."""
    return [_of_model(model, [one for one in run.results if one.model == model]) for model in _models(run)]


def _models(run: RunData) -> list[str]:
    return list(dict.fromkeys(one.model for one in run.results))


def _of_model(model: str, found: Sequence[Evaluation]) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for one in found for key in one.measures))
    rows = [
        {"set": name(one.set), "rows": one.rows or NOTHING, "values": [read_measure(one, key) for key in keys]}
        for one in found
    ]
    return {"model": name(model), "measures": [_NAMES.get(key, name(key)) for key in keys], "sets": rows}


def with_classes(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The latest evaluation of the first set that has its classes."""
    return next((one for one in reversed(evaluations) if one.set == evaluations[0].set and one.per_class), None)


def classes(last: Evaluation, first: Evaluation | None) -> dict[str, Any]:
    """Those with the lowest accuracy: what was right before and after, and what was said instead."""
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
                "label": name(label),
                "after": _share(last, label),
                "before": _share(first, label) if first else "",
                "instead": f"{_answer(answer)} ({count})" if count else "",
            }
        )
    more = max(0, len(wrong) - _CLASSES)
    return {"rows": rows, "set": name(last.set), "step": last.step, "all": len(last.per_class), "more": more}


def confusions(last: Evaluation, left_out: list[str]) -> list[tuple[str, str, int]]:
    """The commonest: label, answer, count."""
    wrong = sorted((one for one in last.confusion if one[0] != one[1]), key=lambda one: -one[2])
    if len(wrong) > _PAIRS:
        left_out.append(f"{len(wrong) - _PAIRS} rarer confusions")
    return [(name(label), _answer(answer), count) for label, answer, count in wrong[:_PAIRS]]


def _answer(text: str) -> str:
    return name(text) if text else "none of the list"


def _share(one: Evaluation, label: str) -> str:
    return "/".join(map(str, one.per_class[label])) if label in one.per_class else NOTHING
