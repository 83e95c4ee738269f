"""Compare several runs for the report: final measures, spread over seeds, keys on which configurations differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from learner.report.data import RunData, samples_answers
from learner.report.format import KEYS, NOTHING, format_fields, format_value, shorten_name
from learner.report.rows import as_number
from learner.text import shorten

_SETS = 6  # sets of a run in the table
_FORMS = {"steps": "{:.0f}", "time (s)": "{:.0f}", "largest log-prob gap": "{:.1e}"}


def compare(runs: Sequence[RunData], left_out: list[str]) -> dict[str, Any]:
    """Return everything the page shows of several runs, except curves; note what is left out."""
    finals = [_summarise_run(run) for run in runs]
    measures = list(dict.fromkeys(key for final in finals for key in final))
    left_out.append("groups, classes, timing and events of each run: its own report has them")
    if any(len(run.sets) > _SETS for run in runs):
        left_out.append(f"the table has the first {_SETS} sets of each run")
    return {
        "legend": [(place, shorten_name(run.label)) for place, run in enumerate(runs)],
        "measures": measures,
        "finals": [
            {
                "number": place,
                "label": shorten_name(run.label),
                "outcome": shorten(run.outcome, 30),
                "seed": shorten(str(run.config.get("seed", NOTHING)), 30),
                "values": [_format_value(key, final[key]) if key in final else NOTHING for key in measures],
            }
            for place, (run, final) in enumerate(zip(runs, finals, strict=True))
        ],
        "spreads": list(_measure_spreads(runs, finals)),
        "differences": list(_find_differences(runs, left_out)),
    }


def _summarise_run(run: RunData) -> dict[str, float]:
    """Return the final measures of a run by name, without those that are not on file."""
    values: dict[str, float] = {}
    for one in run.sets[:_SETS]:
        found, of = run.evaluations_of(one), "" if one == "held-out" else f" ({shorten(one, 30)})"
        accuracies = [each.measures.get("accuracy", math.nan) for each in found]
        values[f"accuracy before{of}"] = accuracies[0]
        if len(found) > 1:
            values |= {f"accuracy after{of}": accuracies[-1], f"best accuracy{of}": max(accuracies)}
    if "reward" in run.curves:
        tail = run.curves["reward"][-max(1, run.steps // 10) :].tolist()
        known = [reward for reward in tail if not math.isnan(reward)]
        values["mean reward, last 10 % of steps"] = fmean(known) if known else math.nan
    values["steps"] = float(run.steps)
    values["time (s)"] = as_number(run.summary.get("wall_seconds"))
    values[f"{run.learnt}/s"] = as_number(run.summary.get("completions_per_second"))
    if samples_answers(run.config):
        values["largest log-prob gap"] = as_number(run.summary.get("max_logprob_gap"))
    return {key: found for key, found in values.items() if not math.isnan(found)}


def _measure_spreads(runs: Sequence[RunData], finals: Sequence[Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    """Yield mean and standard deviation of every measure over two or more runs that differ in `seed` alone."""
    alike: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        alike.setdefault(json.dumps(run.recipe, sort_keys=True, default=str), []).append(place)
    for members in (places for places in alike.values() if len(places) > 1):
        keys = dict.fromkeys(key for place in members for key in finals[place])
        known = {key: [finals[place][key] for place in members if key in finals[place]] for key in keys}
        yield {
            "runs": [shorten_name(runs[place].label) for place in members],
            "seeds": ", ".join(format_value(runs[place].config.get("seed", NOTHING)) for place in members),
            "values": [(key, _format_spread(key, found)) for key, found in known.items()],
        }


def _format_spread(key: str, found: Sequence[float]) -> str:
    return _format_value(key, fmean(found)) + (
        f" ± {_format_value(key, stdev(found))}" if len(found) > 1 else ", of one"
    )


def _format_value(key: str, found: float) -> str:
    return _FORMS.get(key, "{:.0f}" if key.endswith("/s") else "{:.3f}").format(found)


def _find_differences(runs: Sequence[RunData], left_out: list[str]) -> Iterator[dict[str, Any]]:
    """Yield each key on which the configurations differ, with the runs that have each value."""
    told = [{key: format_value(found) for key, found in run.config.items()} for run in runs]
    keys = dict.fromkeys(key for run in told for key in run)
    differing = [key for key in keys if len({run.get(key, "not set") for run in told}) > 1]
    if len(differing) > KEYS:
        left_out.append(f"{len(differing) - KEYS} keys on which the configurations differ")
    for key in differing[:KEYS]:
        holders: dict[str, list[int]] = {}
        for place, run in enumerate(told):
            holders.setdefault(run.get(key, "not set"), []).append(place)
        yield {"key": shorten_name(key), "values": list(holders.items())}


def find_faults(runs: Sequence[RunData], kinds: frozenset[str]) -> list[tuple[str, str, int, str]]:
    """Return run, kind, count and first event for every kind of fault."""
    return [
        (shorten_name(run.label), shorten_name(one.kind), one.count, format_fields(one.first))
        for run in runs
        for one in run.events
        if one.kind in kinds
    ]
