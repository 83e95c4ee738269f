"""Writes the Grafana dashboard of a run: `python deploy/monitoring/dashboard.py > deploy/monitoring/dashboard.json`.

Change a panel here, never in the JSON. Grafana imports that file under Dashboards > New > Import.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

RUN = '{run=~"$run"}'
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT, COLUMNS = 8, 7, 3


class Panel(NamedTuple):
    """A plot: its title, its queries, each with the legend of its lines, and Grafana's name of its unit."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    stacked: bool = False
    help: str = ""


def latest(name: str, by: str = "run") -> str:
    """Return the query of a gauge, without the labels that a restart of its process changes."""
    return f"max by ({by}) (ray_rollcall_{name}{RUN})"


PANELS = (
    Panel(
        "Steps done",
        ((latest("steps"), "{{run}}"),),
        help="A line that is flat is a run that stands still.",
    ),
    Panel("Reward, mean of a step", ((latest("reward_mean"), "{{run}}"),)),
    Panel(
        "Seconds of a step",
        ((latest("phase_seconds", "run, phase"), "{{run}} {{phase}}"),),
        unit="s",
        stacked=True,
        help="generate: the driver waits for groups. learn: for the ranks. publish: for engines to load weights.",
    ),
    Panel(
        "Idle share of actors",
        (("run_actor:rollcall_idle:ratio5m" + RUN, "{{run}} {{actor}}"),),
        unit="percentunit",
        help="Who is never idle is what the run waits for.",
    ),
    Panel("Completion tokens a second", ((latest("tokens_per_second"), "{{run}}"),)),
    Panel(
        "Groups that wait",
        ((latest("queue", "run, of"), "{{run}} {{of}}"),),
        help="For an engine, in engines (sampling), for the driver to take them, for a reward.",
    ),
    Panel("Engines", ((latest("engines", "run, state"), "{{run}} {{state}}"),)),
    Panel(
        "Versions of weights",
        ((latest("weights_version", "run, actor"), "{{run}} {{actor}}"),),
        help="The learner's is the newest that was published. An engine that lags sends groups of older weights.",
    ),
    Panel(
        "Versions behind",
        (
            (latest("weights_lag", "run, actor"), "{{run}} {{actor}}"),
            (latest("weights_lag_limit"), "{{run}} allowed"),
        ),
    ),
    Panel(
        "Log-prob gap, share of its limit",
        (("run:rollcall_logprob_gap:ratio" + RUN, "{{run}}"),),
        unit="percentunit",
        help="At 1 the run stops: engine and learner would not be one policy.",
    ),
    Panel(
        "Log-prob gap",
        (
            (latest("logprob_gap", "run, of"), "{{run}} {{of}}"),
            (latest("logprob_gap_limit", "run, of"), "limit {{of}}"),
        ),
    ),
    Panel(
        "Entropy and KL",
        ((latest("entropy"), "{{run}} entropy"), (latest("kl"), "{{run}} KL")),
    ),
    Panel(
        "Groups without signal",
        ((latest("zero_std_share"), "{{run}}"),),
        unit="percentunit",
        help="All their answers earn the same, so they teach nothing.",
    ),
    Panel("Groups", ((latest("groups", "run, what"), "{{run}} {{what}}"),)),
    Panel("Dropped groups, share of a step", ((latest("dropped_share"), "{{run}}"),), unit="percentunit"),
    Panel("Actors lost and replaced", ((latest("losses", "run, of"), "{{run}} {{of}}"),)),
    Panel(
        "Age of the newest checkpoint",
        (("time() - " + latest("checkpoint_timestamp_seconds"), "{{run}}"),),
        unit="s",
        help="Or of this start, until its first checkpoint.",
    ),
    Panel("Checkpoints that failed", ((latest("checkpoint_failures"), "{{run}}"),)),
    Panel(
        "vLLM: completions",
        (
            (latest("vllm_requests_running", "run, actor"), "{{run}} {{actor}} sampled"),
            (latest("vllm_requests_waiting", "run, actor"), "{{run}} {{actor}} waiting"),
        ),
    ),
    Panel(
        "vLLM: used share of the KV cache",
        ((latest("vllm_kv_cache_usage", "run, actor"), "{{run}} {{actor}}"),),
        unit="percentunit",
    ),
    Panel(
        "vLLM: completions put off",
        (
            (
                f"max by (run, actor) (increase(ray_rollcall_vllm_preemptions{RUN}[5m]))",
                "{{run}} {{actor}}",
            ),
        ),
        help="In five minutes, for want of KV cache.",
    ),
)


def make_panel(number: int, panel: Panel) -> dict[str, Any]:
    """Return a panel as Grafana stores it."""
    row, column = divmod(number, COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "custom": {
                    "fillOpacity": 30 if panel.stacked else 0,
                    "stacking": {"mode": "normal" if panel.stacked else "none"},
                },
            },
            "overrides": [],
        },
        "options": {"legend": {"showLegend": True, "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def make_dashboard() -> dict[str, Any]:
    """Return the dashboard, with a choice of the data source and of the runs shown."""
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    run = {
        "name": "run",
        "type": "query",
        "label": "Run",
        "datasource": SOURCE,
        "query": {"query": "label_values(ray_rollcall_run_open, run)", "refId": "run"},
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
    return {
        "uid": "rollcall",
        "title": "Rollcall",
        "tags": ["rollcall", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, run]},
        "panels": [make_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(make_dashboard(), indent=1) + "\n")
