"""The page of a report: everything its template is given, in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from learner.report.compare import compare, troubles
from learner.report.data import RunData
from learner.report.figures import Drawing, Figure, note
from learner.report.format import KEYS, clean, fields, name, value
from learner.report.groups import groups
from learner.report.measures import before_after, by_model, classes, confusions, halves, headline, with_classes
from learner.report.plots import COLOURS
from learner.report.rows import number
from learner.text import clock

TEMPLATE = "page.html.jinja"
_TROUBLES = frozenset({"dropped", "engine_lost", "checkpoint_failed", "log_failed", "report_failed"})


def render(runs: Sequence[RunData], drawing: Drawing, *, made: datetime) -> str:
    """The whole page. Every value is made printable and escaped as it is put in, whatever it holds."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context = _one(runs[0], drawing) if len(runs) == 1 else _several(runs, drawing.left_out)
    context |= {
        "figures": [_figure(figure) for figure in drawing.curves(runs)],
        "note": note(runs),
        "made": f"{made:%Y-%m-%d %H:%M %Z}",
        "faults": [(name(run.label), fault) for run in runs for fault in run.faults],
        "colours": COLOURS,
        "left_out": drawing.left_out,
    }
    return environment.get_template(TEMPLATE).render(context)


def _several(runs: Sequence[RunData], left_out: list[str]) -> dict[str, Any]:
    return {
        "several": True,
        "title": f"{len(runs)} runs",
        **compare(runs, left_out),
        "troubles": troubles(runs, _TROUBLES),
    }


def _one(run: RunData, drawing: Drawing) -> dict[str, Any]:
    left_out = drawing.left_out
    last = with_classes(run.evaluations)
    first = next((one for one in run.evaluations if last and one.set == last.set and one.per_class), None)
    only = with_classes(run.results) if len(run.results) == 1 else None
    return {
        "several": False,
        "title": name(str(run.config.get("name") or run.label)),
        "run": _head(run),
        "headline": headline(run.evaluated(run.sets[0])) if run.sets else None,
        "before_after": [before_after(run.evaluated(one)) for one in run.sets],
        "halves": list(halves(run)),
        "results": {
            "models": by_model(run),
            "matrix": _figure(drawing.across(run.matrix)),
            "confusion": _figure(drawing.confusion(only)) if only else None,
        },
        "classes": classes(last, first if first is not last else None) if last else None,
        "confusion": _figure(drawing.confusion(last)) if last else None,
        "confused": confusions(last, left_out) if last else [],
        "groups": groups(run, left_out),
        "samples": run.samples,
        "timing": _figure(drawing.timing(run)),
        "events": _events(run),
        "config": _config(run, left_out),
        "environment": [(name(key), value(found)) for key, found in run.environment.items()][:KEYS],
    }


def _head(run: RunData) -> dict[str, Any]:
    """Outcome, and the facts that are known."""
    summary, config = run.summary, run.config
    sha = str(summary.get("git_sha") or run.environment.get("git_sha") or "")
    facts = {
        "steps": f"{run.steps}" + (f" of {config['steps']}" if config.get("steps") else ""),
        "time": _time(number(summary.get("wall_seconds")), number(summary.get("startup_seconds"))),
        "speed": _known(summary.get("completions_per_second"), "{:.0f} completions/s"),
        "log-prob gap": _known(summary.get("max_logprob_gap"), "{:.1e} at most"),
        "model": config.get("model.path"),
        "data": config.get("data.path"),
        "mode": config.get("data.mode"),
        "seed": config.get("seed"),
        "configuration": summary.get("config_hash") or run.environment.get("config_hash"),
        "source": sha[:12] + ("-dirty" if sha.endswith("-dirty") else ""),
    }
    shown = {key: name(str(found)) for key, found in facts.items() if found not in (None, "")}
    return {"outcome": name(run.outcome), "folder": str(run.folder), "facts": shown}


def _time(seconds: float, startup: float) -> str:
    if math.isnan(seconds):
        return ""
    return clock(seconds) + ("" if math.isnan(startup) else f", start-up {clock(startup)}")


def _known(found: Any, pattern: str) -> str:
    return "" if math.isnan(number(found)) else pattern.format(number(found))


def _events(run: RunData) -> list[dict[str, Any]]:
    """By kind, faults first."""
    rows = [
        {
            "kind": name(one.kind),
            "trouble": one.kind in _TROUBLES or (one.kind == "start" and one.count > 1),
            "count": one.count,
            "when": "" if math.isnan(one.seconds) else clock(one.seconds),
            "first": fields(one.first),
        }
        for one in run.events
    ]
    rows.sort(key=lambda row: not row["trouble"])
    if run.other_events:
        rows.append({"kind": "other kinds", "trouble": True, "count": run.other_events, "when": "", "first": ""})
    return rows


def _config(run: RunData, left_out: list[str]) -> list[tuple[str, str]]:
    rows = [(name(key), value(found)) for key, found in run.config.items()]
    if len(rows) > KEYS:
        left_out.append(f"{len(rows) - KEYS} keys of the configuration")
    return rows[:KEYS]


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    from markupsafe import Markup

    if figure is None:
        return None
    svg = Markup(figure.svg)  # matplotlib escapes the text in it
    return {"title": figure.title, "svg": svg, "legend": figure.legend, "note": figure.note}
