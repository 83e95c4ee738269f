"""The page of a report: what its template shows, put into words and numbers."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from learner.console import clock, event_line, printable, shorten
from learner.report_data import Evaluation, RunData, harmonic
from learner.report_figures import Drawing, note
from learner.report_plots import COLOURS
from learner.report_samples import Answer, Sample, thumbnail

TEMPLATE = "report.html.jinja"
_TEXT, _LINE = 600, 90  # characters of a completion or question, of a label or name
_CLASSES, _PAIRS, _ANSWERS, _CANDIDATES, _KEYS = 12, 12, 10, 60, 300  # rows of each kind before the rest is counted
_TROUBLES = frozenset({"dropped", "engine_lost", "checkpoint_failed", "log_failed", "report_failed"})
_LESS_IS_BETTER = frozenset({"invalid_rate", "out_of_list_rate", "ece", "brier"})
_NAMES = {
    **{"accuracy": "accuracy, strict", "lenient": "accuracy, lenient", "closed_set": "accuracy, closed set"},
    **{"macro_f1": "macro F1", "invalid_rate": "invalid answers", "out_of_list_rate": "answers out of the list"},
    **{"ece": "calibration error (ECE)", "brier": "Brier score"},
}


class Lines(str):
    """Text whose line breaks are kept."""

    __slots__ = ()


def render(runs: Sequence[RunData], drawing: Drawing, *, made: datetime) -> str:
    """The whole page. Every value is made printable and escaped as it is put in, whatever it holds."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context = _one(runs[0], drawing) if len(runs) == 1 else _several(runs, drawing)
    shared = {
        "figures": _figures(drawing.curves(runs)),
        "note": note(runs),
        "made": f"{made:%Y-%m-%d %H:%M %Z}",
        "faults": [(run.label, fault) for run in runs for fault in run.faults],
        "colours": COLOURS,
    }
    return environment.get_template(TEMPLATE).render(**context, **shared, left_out=drawing.left_out)


def _clean(value: Any) -> Any:
    """Nothing that could reorder, hide or break what stands beside it; markup is the template's and figures' alone."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    if isinstance(value, Lines):
        return "\n".join(map(printable, value.split("\n")))
    return printable(str(value))


# One run


def _one(run: RunData, drawing: Drawing) -> dict[str, Any]:
    last = _last_classes(run.evaluations)
    first = next((one for one in run.evaluations if last and one.set == last.set and one.per_class), None)
    return {
        "several": False,
        "title": _name(run),
        "run": _head(run),
        "headline": _headline(run.evaluated(run.sets[0])) if run.sets else None,
        "before_after": [_before_after(name, run.evaluated(name)) for name in run.sets],
        "halves": _halves(run),
        "results": _results(run, drawing),
        "classes": _classes(last, first if first is not last else None) if last else None,
        "confusion": _figure(drawing.confusion(last)) if last else None,
        "confused": _pairs(last, drawing.left_out) if last else [],
        "groups": _groups(run, drawing.left_out),
        "samples": run.samples,
        "timing": _figure(drawing.timing(run)),
        "events": _events(run),
        "config": _config(run, drawing.left_out),
        "environment": [(key, _short(value)) for key, value in run.environment.items()][:_KEYS],
    }


def _head(run: RunData) -> dict[str, Any]:
    summary, config = run.summary, run.config
    seconds, startup = _number(summary.get("wall_seconds")), _number(summary.get("startup_seconds"))
    time = clock(seconds) + (f", start-up {clock(startup)}" if startup == startup else "") if seconds == seconds else ""
    facts = {
        "steps": f"{run.steps}" + (f" of {config['steps']}" if config.get("steps") else ""),
        "time": time,
        "speed": _unit(summary.get("completions_per_second"), "{:.0f} completions/s"),
        "log-prob gap": _unit(summary.get("max_logprob_gap"), "{:.1e} at most"),
        "model": config.get("model.path"),
        "data": config.get("data.path"),
        "mode": config.get("data.mode"),
        "seed": config.get("seed"),
        "configuration": summary.get("config_hash") or run.environment.get("config_hash"),
        "source": str(summary.get("git_sha") or run.environment.get("git_sha") or "")[:12],
    }
    shown = {name: shorten(str(value), _LINE) for name, value in facts.items() if value not in (None, "")}
    return {"outcome": run.outcome, "folder": str(run.folder), "facts": shown}


def _name(run: RunData) -> str:
    return shorten(str(run.config.get("name") or run.label), _LINE)


def _headline(found: Sequence[Evaluation]) -> dict[str, Any]:
    first, last = found[0], found[-1]
    return {
        "set": first.set,
        "rows": last.rows,
        "before": _measured(first, "accuracy"),
        "after": _measured(last, "accuracy") if len(found) > 1 else None,
    }


def _before_after(name: str, found: Sequence[Evaluation]) -> dict[str, Any]:
    """Every measure of one set, first, last and best."""
    first, last = found[0], found[-1]
    measures = list(dict.fromkeys([*last.measures, *first.measures]))
    rows = []
    for key in measures:
        known = [one for one in found if key in one.measures]
        sign = -1 if key in _LESS_IS_BETTER else 1
        best = max(known, key=lambda one: sign * one.measures[key])  # noqa: B023  # used at once
        rows.append(
            {
                "name": _NAMES.get(key, key),
                "before": _measured(first, key),
                "after": _measured(last, key) if len(found) > 1 else None,
                "best": f"{best.measures[key]:.3f} (step {best.step})",
            }
        )
    return {"set": name, "rows": last.rows, "first": first.step, "last": last.step, "measures": rows}


def _measured(one: Evaluation, key: str) -> dict[str, str] | None:
    value = one.measures.get(key)
    if value is None:
        return None
    low, high = one.intervals.get(key, (math.nan, math.nan))
    return {"value": f"{value:.3f}", "interval": f"{low:.3f} to {high:.3f}" if low == low and high == high else ""}


def _halves(run: RunData) -> list[dict[str, str]]:
    """Base, New and H of whatever sets are halves of one, within the run and in what was evaluated after it."""
    rows = []
    for title, found in (
        ("before", {one.set: one for one in reversed(run.evaluations)}),
        ("after", {one.set: one for one in run.evaluations}),
        *((model or "evaluated", {one.set: one for one in run.results if one.model == model}) for model in _models(run)),
    ):
        for name in found:
            stem = name.removesuffix("base_test")
            if stem == name or f"{stem}new_test" not in found:
                continue
            base, new = (found[half].measures.get("accuracy", math.nan) for half in (name, f"{stem}new_test"))
            numbers = {"base": base, "new": new, "h": harmonic(base, new)}
            rows.append({"what": title, "set": stem.rstrip("@") or "own data"} | {k: _share(v) for k, v in numbers.items()})
    return rows


def _models(run: RunData) -> list[str]:
    return list(dict.fromkeys(one.model for one in run.results))


def _results(run: RunData, drawing: Drawing) -> dict[str, Any] | None:
    if not run.results and not run.matrix:
        return None
    sets = [
        {
            "set": one.set,
            "model": one.model,
            "rows": one.rows,
            "measures": [{"name": _NAMES.get(key, key), **(_measured(one, key) or {})} for key in one.measures],
        }
        for one in run.results
    ]
    last = _last_classes(run.results)
    return {
        "sets": sets,
        "matrix": _figure(drawing.across(run.matrix)),
        "confusion": _figure(drawing.confusion(last)) if last and len(run.results) == 1 else None,
    }


def _last_classes(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The latest evaluation of the first set, with its classes."""
    return next((one for one in reversed(evaluations) if one.set == evaluations[0].set and one.per_class), None)


def _classes(last: Evaluation, first: Evaluation | None) -> dict[str, Any]:
    """Those with the lowest accuracy: what was right before and after, and what was said instead."""
    wrong = [(right / rows, label, right, rows) for label, (right, rows) in last.per_class.items() if rows > right >= 0]
    wrong.sort()
    instead: dict[str, tuple[int, str]] = {}
    for label, answer, count in last.confusion:
        if answer != label:
            instead[label] = max(instead.get(label, (0, "")), (count, answer))
    rows = []
    for _, label, right, total in wrong[:_CLASSES]:
        count, answer = instead.get(label, (0, ""))
        before = first.per_class.get(label) if first else None
        rows.append(
            {
                "label": shorten(label, _LINE),
                "share": f"{right / total:.2f}",
                "after": f"{right} of {total}",
                "before": f"{before[0]} of {before[1]}" if before else "",
                "instead": f"{shorten(answer, _LINE) or 'none of the list'} ({count})" if count else "",
            }
        )
    return {"rows": rows, "set": last.set, "step": last.step, "all": len(last.per_class), "more": max(0, len(wrong) - _CLASSES)}


def _pairs(last: Evaluation, left_out: list[str]) -> list[tuple[str, str, int]]:
    """The commonest confusions: label, answer, count."""
    wrong = sorted((one for one in last.confusion if one[0] != one[1]), key=lambda one: -one[2])
    if len(wrong) > _PAIRS:
        left_out.append(f"{len(wrong) - _PAIRS} rarer confusions")
    return [
        (shorten(label, _LINE), shorten(answer, _LINE) or "none of the list", count)
        for label, answer, count in wrong[:_PAIRS]
    ]


def _groups(run: RunData, left_out: list[str]) -> list[dict[str, Any]]:
    chosen = {
        "Lowest reward": ("What the model still gets wrong.", run.samples.worst),
        "Most divided": ("Some answers right, some wrong: these teach most.", run.samples.divided),
        "Highest reward": ("What it gets right.", run.samples.best),
    }
    shown = len({(one.step, one.prompt_id) for _, samples in chosen.values() for one in samples})
    if run.samples.seen > shown:
        left_out.append(f"{run.samples.seen - shown} of {run.samples.seen} groups kept from step {run.samples.after} on")
    return [
        {"title": title, "why": why, "groups": [_group(run, one) for one in samples]}
        for title, (why, samples) in chosen.items()
        if samples
    ]


def _group(run: RunData, sample: Sample) -> dict[str, Any]:
    picture = thumbnail(run.folder, sample.image)
    gap = _at(run, "logprob_gap_max", sample.step)
    names = [shorten(name, _LINE) for name in sample.candidates]
    return {
        "step": sample.step,
        "prompt": shorten(sample.prompt_id, _LINE),
        "label": shorten(sample.label, _LINE),
        "problem": Lines(_cut(sample.problem, _TEXT)),
        "picture": base64.b64encode(picture).decode() if picture else "",
        "no_picture": sample.image and not picture,
        "candidates": names[:_CANDIDATES],
        "more_candidates": max(0, len(names) - _CANDIDATES),
        "mean": f"{sample.mean:.2f}",
        "gap": f"{gap:.1e}" if gap == gap else "",
        "size": len(sample.answers),
        **_answers(sample.answers),
    }


def _answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """Equal answers once, with their number; the commonest first."""
    counts = Counter((one.text, one.reward, one.cut) for one in answers)
    one_of = {(one.text, one.reward, one.cut): one for one in answers}
    rows = [
        {
            "text": Lines(_cut(one_of[key].text, _TEXT)),
            "count": count,
            "reward": f"{one_of[key].reward:.3g}",
            "advantage": _signed(one_of[key].advantage),
            "logprob": f"{one_of[key].logprob:.2f}" if one_of[key].logprob == one_of[key].logprob else "–",
            "tokens": one_of[key].tokens,
            "cut": one_of[key].cut,
        }
        for key, count in counts.most_common(_ANSWERS)
    ]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(_ANSWERS))
    return {"answers": rows, "more_answers": rest}


def _at(run: RunData, column: str, step: int) -> float:
    """The value of a curve at one step, NaN where there is none."""
    if column not in run.curves:
        return math.nan
    found = run.curves[column][run.curves["step"] == step]
    return float(found[-1]) if len(found) else math.nan


def _events(run: RunData) -> list[dict[str, Any]]:
    """By kind, faults first."""
    rows = [
        {
            "kind": shorten(one.kind, 40),
            "trouble": one.kind in _TROUBLES or (one.kind == "start" and one.count > 1),
            "count": one.count,
            "when": clock(one.seconds) if one.seconds == one.seconds else "",
            "first": shorten(event_line("", one.first).strip(), 300),
        }
        for one in run.events
    ]
    rows.sort(key=lambda row: not row["trouble"])
    if run.other_events:
        rows.append({"kind": "of other kinds", "trouble": True, "count": run.other_events, "when": "", "first": ""})
    return rows


def _config(run: RunData, left_out: list[str]) -> list[tuple[str, str]]:
    rows = [(key, _short(value)) for key, value in run.config.items()]
    if len(rows) > _KEYS:
        left_out.append(f"{len(rows) - _KEYS} keys of the configuration")
    return rows[:_KEYS]


# Several runs


def _several(runs: Sequence[RunData], drawing: Drawing) -> dict[str, Any]:
    finals = [_final(run) for run in runs]
    drawing.left_out.append("groups, confusions, timing and events of each run: its own report has them")
    return {
        "several": True,
        "title": f"{len(runs)} runs",
        "legend": [(number, run.label) for number, run in enumerate(runs)],
        "finals": [
            {"number": number, "label": run.label, "outcome": run.outcome, "seed": run.config.get("seed", ""), "values": _shown(final)}
            for number, (run, final) in enumerate(zip(runs, finals, strict=True))
        ],
        "spreads": list(_spreads(runs, finals)),
        "differences": list(_differences(runs, drawing.left_out)),
        "troubles": [
            (run.label, shorten(one.kind, 40), one.count, shorten(event_line("", one.first).strip(), 200))
            for run in runs
            for one in run.events
            if one.kind in _TROUBLES
        ],
    }


_UNITS = {"steps": "{:.0f}", "time (s)": "{:.0f}", "completions/s": "{:.0f}", "largest gap": "{:.1e}"}


def _final(run: RunData) -> dict[str, float]:
    """What a run came to."""
    values: dict[str, float] = {}
    for name in run.sets[:6]:
        found, of = run.evaluated(name), "" if name == "held-out" else f" ({shorten(name, 30)})"
        values[f"accuracy before{of}"] = found[0].measures.get("accuracy", math.nan)
        if len(found) > 1:
            values[f"accuracy after{of}"] = found[-1].measures.get("accuracy", math.nan)
            values[f"best{of}"] = max(one.measures.get("accuracy", -math.inf) for one in found)
    if "reward" in run.curves:
        tail = run.curves["reward"][-max(1, run.steps // 10) :]
        known = tail[tail == tail]
        values["reward, last tenth"] = float(known.mean()) if len(known) else math.nan
    summary = {"time (s)": "wall_seconds", "completions/s": "completions_per_second", "largest gap": "max_logprob_gap"}
    values["steps"] = float(run.steps)
    values |= {name: _number(run.summary.get(key)) for name, key in summary.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _shown(values: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, _UNITS.get(name, "{:.3f}").format(value)) for name, value in values.items()]


def _spreads(runs: Sequence[RunData], finals: Sequence[Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    """Mean and standard deviation over the runs of one recipe, which differ in their seed alone."""
    alike: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        alike.setdefault(json.dumps(run.recipe, sort_keys=True, default=str), []).append(number)
    for members in alike.values():
        names = dict.fromkeys(name for number in members for name in finals[number])
        values = {name: [finals[number][name] for number in members if name in finals[number]] for name in names}
        yield {
            "runs": [runs[number].label for number in members],
            "seeds": ", ".join(_short(runs[number].config.get("seed", "?")) for number in members),
            "values": [(name, _spread(name, found)) for name, found in values.items()],
        }


def _spread(name: str, values: Sequence[float]) -> str:
    form = _UNITS.get(name, "{:.3f}")
    return form.format(fmean(values)) + (f" ± {form.format(stdev(values))}" if len(values) > 1 else "")


def _differences(runs: Sequence[RunData], left_out: list[str]) -> Iterator[dict[str, Any]]:
    """Keys on which the configurations differ, and who has which value."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    differing = [key for key in keys if len({_short(run.config.get(key, "not set")) for run in runs}) > 1]
    if len(differing) > _KEYS:
        left_out.append(f"{len(differing) - _KEYS} keys on which the configurations differ")
    for key in differing[:_KEYS]:
        holders: dict[str, list[int]] = {}
        for number, run in enumerate(runs):
            holders.setdefault(_short(run.config.get(key, "not set")), []).append(number)
        yield {"key": key, "values": list(holders.items())}


# Words and numbers


def _figures(figures: Iterable[Any]) -> list[dict[str, Any]]:
    return [made for figure in figures if (made := _figure(figure))]


def _figure(figure: Any) -> dict[str, Any] | None:
    from markupsafe import Markup

    if figure is None:
        return None
    svg = Markup(figure.svg)  # noqa: S704  # of matplotlib, which escapes its text
    return {"title": figure.title, "svg": svg, "legend": figure.legend, "note": figure.note}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… and {len(text) - limit} more characters"


def _short(value: Any) -> str:
    return shorten(value if isinstance(value, str) else json.dumps(value, default=str), 200)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _unit(value: Any, form: str) -> str:
    number = _number(value)
    return form.format(number) if number == number else ""


def _share(value: float) -> str:
    return f"{value:.3f}" if value == value else "–"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if value == value else "–"
