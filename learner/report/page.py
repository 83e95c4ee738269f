"""Fill the page of a report: everything its template is given, in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from learner.report.compare import compare, find_faults
from learner.report.data import EventKind, RunData, samples_answers
from learner.report.figures import Drawing, Figure, describe_smoothing
from learner.report.format import KEYS, format_fields, format_value, make_safe, shorten_name
from learner.report.groups import describe_groups, introduce_groups
from learner.report.measures import (
    compare_first_and_last,
    describe_headline,
    find_base_and_new,
    find_last_with_classes,
    list_confusions,
    list_worst_classes,
    tabulate_models,
)
from learner.report.plots import COLOURS
from learner.report.rows import as_mapping, as_number
from learner.text import format_clock, shorten
from learner.tracking.lines import format_alarm, format_bottleneck, format_hang
from learner.tracking.watch import SIGNS

TEMPLATE = "page.html.jinja"
_METHODS = {"grpo": "GRPO", "exact": "exact gradient", "sft": "SFT (supervised)"}
_LOSSES = {"engine_lost", "rank_lost"}
_TROUBLES = frozenset({"dropped", *_LOSSES, "hang", "checkpoint_failed", "log_failed", "report_failed"}) | SIGNS


def render_page(runs: Sequence[RunData], drawing: Drawing, *, made: datetime) -> str:
    """Return the whole page as HTML. Every value is made printable and escaped as it is put in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=make_safe,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context = _describe_run(runs[0], drawing) if len(runs) == 1 else _describe_runs(runs, drawing.left_out)
    context |= {
        "figures": [_embed_figure(figure) for figure in drawing.draw_curves(runs)],
        "smoothing": describe_smoothing(runs),
        "made": f"{made:%Y-%m-%d %H:%M %Z}",
        "faults": [(shorten_name(run.label), fault) for run in runs for fault in run.faults],
        "colours": COLOURS,
        "left_out": drawing.left_out,
    }
    return environment.get_template(TEMPLATE).render(context)


def _describe_runs(runs: Sequence[RunData], left_out: list[str]) -> dict[str, Any]:
    return {
        "several": True,
        "title": f"{len(runs)} runs",
        **compare(runs, left_out),
        "troubles": find_faults(runs, _TROUBLES),
    }


def _describe_run(run: RunData, drawing: Drawing) -> dict[str, Any]:
    left_out = drawing.left_out
    last = find_last_with_classes(run.evaluations)
    first = next((one for one in run.evaluations if last and one.set == last.set and one.per_class), None)
    only = find_last_with_classes(run.results) if len(run.results) == 1 else None
    return {
        "several": False,
        "title": shorten_name(str(run.config.get("name") or run.label)),
        "run": _describe_head(run),
        "headline": describe_headline(run.evaluations_of(run.sets[0])) if run.sets else None,
        "before_after": [compare_first_and_last(run.evaluations_of(one)) for one in run.sets],
        "halves": list(find_base_and_new(run)),
        "results": {
            "models": tabulate_models(run),
            "matrix": _embed_figure(drawing.draw_models_by_sets(run.matrix)),
            "confusion": _embed_figure(drawing.draw_confusion(only)) if only else None,
        },
        "classes": list_worst_classes(last, first if first is not last else None) if last else None,
        "confusion": _embed_figure(drawing.draw_confusion(last)) if last else None,
        "confused": list_confusions(last, left_out) if last else [],
        "groups": describe_groups(run, left_out),
        "introduction": introduce_groups(run),
        "bottleneck": _describe_bottleneck(run),
        "timing": _embed_figure(drawing.draw_stage_times(run)),
        "events": _describe_events(run),
        "config": _list_config(run, left_out),
        "environment": [(shorten_name(key), format_value(found)) for key, found in run.environment.items()][:KEYS],
    }


def _describe_head(run: RunData) -> dict[str, Any]:
    """Return outcome and folder, and the facts on file under a name each."""
    summary, config = run.summary, run.config
    sha = str(summary.get("git_sha") or run.environment.get("git_sha") or "")
    facts = {
        "steps": f"{run.steps}" + (f" of {config['steps']}" if config.get("steps") else ""),
        "stopped early": summary.get("stopped_early"),
        "time": _format_time(as_number(summary.get("wall_seconds")), as_number(summary.get("startup_seconds"))),
        "speed": _format_known(summary.get("completions_per_second"), f"{{:.0f}} {run.learnt}/s"),
        "log-prob gap": _describe_gap(run),
        "method": _METHODS.get(run.method, run.method) if config else "",
        "model": config.get("model.path"),
        "data": config.get("data.path"),
        "mode": config.get("data.mode"),
        "seed": config.get("seed"),
        "configuration hash": summary.get("config_hash") or run.environment.get("config_hash"),
        "commit": sha[:12] + ("-dirty" if sha.endswith("-dirty") else ""),
    }
    shown = {key: shorten_name(str(found)) for key, found in facts.items() if found not in (None, "")}
    return {"outcome": shorten_name(run.outcome), "folder": str(run.folder), "facts": shown}


def _describe_gap(run: RunData) -> str:
    """Say how far engine and learner were apart at most, or that no engine sampled anything to compare."""
    if not samples_answers(run.config):
        return "nothing was sampled"
    return _format_known(run.summary.get("max_logprob_gap"), "{:.1e} at most")


def _format_time(seconds: float, startup: float) -> str:
    if math.isnan(seconds):
        return ""
    return format_clock(seconds) + ("" if math.isnan(startup) else f", start-up {format_clock(startup)}")


def _format_known(found: Any, pattern: str) -> str:
    return "" if math.isnan(as_number(found)) else pattern.format(as_number(found))


def _describe_events(run: RunData) -> list[dict[str, Any]]:
    """Return one row for each kind of event, faults first."""
    rows = [
        {
            "kind": shorten_name(one.kind),
            "trouble": one.kind in _TROUBLES or (one.kind == "start" and one.count > 1),
            "count": one.count,
            "when": "" if math.isnan(one.seconds) else format_clock(one.seconds),
            "first": _describe_event(one),
        }
        for one in run.events
    ]
    rows.sort(key=lambda row: not row["trouble"])
    if run.other_events:
        rows.append({"kind": "other kinds", "trouble": True, "count": run.other_events, "when": "", "first": ""})
    return rows


def _describe_event(one: EventKind) -> str:
    """Return the first event of a kind as a console shows it."""
    tellers = {"bottleneck": format_bottleneck, "hang": format_hang}
    teller = format_alarm if one.kind in SIGNS else tellers.get(one.kind)
    return shorten(teller(one.first), 600) if teller else format_fields(one.first)


def _describe_bottleneck(run: RunData) -> str:
    """Say what the run waited for most, and what to change: by its summary, or by its last word while it goes on."""
    told = next((one.last for one in run.events if one.kind == "bottleneck"), {})
    found = as_mapping(run.summary.get("bottleneck")) or told
    return shorten(f"The bottleneck is {format_bottleneck(found)}.", 400) if found else ""


def _list_config(run: RunData, left_out: list[str]) -> list[tuple[str, str]]:
    rows = [(shorten_name(key), format_value(found)) for key, found in run.config.items()]
    if len(rows) > KEYS:
        left_out.append(f"{len(rows) - KEYS} keys of the configuration")
    return rows[:KEYS]


def _embed_figure(figure: Figure | None) -> dict[str, Any] | None:
    from markupsafe import Markup

    if figure is None:
        return None
    svg = Markup(figure.svg)  # matplotlib escapes the text in it
    return {"title": figure.title, "svg": svg, "legend": figure.legend, "note": figure.note}
