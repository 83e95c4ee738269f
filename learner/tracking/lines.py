"""One line of text for each thing that a console shows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from common.errors import escape_unprintable
from common.types import ScoredGroup
from learner.evaluation.measures import HELD_OUT
from learner.text import shorten
from learner.tracking.records import StepRecord
from learner.tracking.watch import SIGNS

# Events that are not shown: they come every step, or are shown in another way.
QUIET = frozenset(
    {
        "start",
        "end",
        "engine_up",
        "rank_up",
        "reward_worker_up",
        "weights_loaded",
        "probe",
        "evaluation",
        "phase",
        "filtered",
    }
)


EMPTY = "(empty)"


class Pace:
    """The speed of this start of a run, evaluations and checkpoints included."""

    def __init__(self, first: StepRecord) -> None:
        self.started = time.monotonic() - first.step_seconds
        self._first_step = first.step

    def estimate_left(self, record: StepRecord, steps: int) -> float:
        """Return the seconds to the end of the run at this speed."""
        each = (time.monotonic() - self.started) / (record.step + 1 - self._first_step)
        return each * (steps - record.step - 1)


def count_troubles(record: StepRecord) -> dict[str, int]:
    """Return the counts of faults that are not 0: {"engine_restarts": 1}."""
    counts = {
        "dropped": record.groups_dropped - record.groups_filtered,
        "checkpoint_failures": record.checkpoint_failures,
        "engine_restarts": record.engine_restarts,
    }
    return {name: count for name, count in counts.items() if count}


def name_gap(record: StepRecord) -> str:
    """Return "gap", or "gap@2" where all tokens were sampled with weights of 2 steps before or older."""
    return f"gap@{record.youngest_lag}" if record.youngest_lag > 0 else "gap"


def format_evaluation(lines: Mapping[str, Mapping[str, Any]]) -> str:
    """Return `accuracy 0.915, invalid 0.000, closed-set 0.920; new 0.700; H 0.794`, the held-out rows first."""
    own = lines.get(HELD_OUT, {})
    named = {"accuracy": "accuracy", "invalid_rate": "invalid", "closed_set": "closed-set"}
    cells = [f"{name} {own[key]:.3f}" for key, name in named.items() if own.get(key) is not None]
    others = [f"{escape_unprintable(name)} {line['accuracy']:.3f}" for name, line in lines.items() if name != HELD_OUT]
    return "; ".join([", ".join(cells), *others] if cells else others)


def format_sample(group: ScoredGroup, limit: int = 110) -> str:
    """Return one line on a group: `sampled train/17 label 7: 7 x9 · 1 x4 · 2 x3`, the most frequent completion first.

    Given answers have no frequency: `given train/17 label 7: 0 · 1 · 2`.
    """
    counts = Counter(completion.text for completion in group.group.completions)
    if group.group.origin == "given":
        said = " · ".join(shorten(text, 40) or EMPTY for text in counts)
    else:
        said = " · ".join(f"{shorten(text, 40) or EMPTY} x{count}" for text, count in counts.most_common())
    prompt, label = escape_unprintable(group.prompt.id), escape_unprintable(group.prompt.example.label)
    return shorten(f"{group.group.origin} {prompt} label {label}: {said}", limit)


def format_line(kind: str, fields: Mapping[str, Any]) -> str:
    """Return the line of an event: `event engine_lost ...`, or `warning: ...` for a hang or a sign of collapse, or
    `note: ...` for a bottleneck."""
    if kind == "bottleneck":
        return f"note: after {fields.get('step')} steps the bottleneck is {format_bottleneck(fields)}"
    if kind == "hang":
        return f"warning: {format_hang(fields)}"
    return f"warning: {format_alarm(fields)}" if kind in SIGNS else f"event {format_event(kind, fields)}"


def format_alarm(fields: Mapping[str, Any]) -> str:
    """Return `after 60 steps: KL 1.2 to the reference, ... Try learner.lr=0.00025`."""
    what, advice = (escape_unprintable(str(fields.get(key, ""))) for key in ("what", "advice"))
    return f"after {fields.get('step')} steps: {what}. {advice}"


def format_bottleneck(fields: Mapping[str, Any]) -> str:
    """Return `the engines, with 72% of the time spent waiting for groups. Let more ... Try rollout.engines=2`."""
    what, advice = (escape_unprintable(str(fields.get(key, ""))) for key in ("what", "advice"))
    return f"{what}. {advice}"


def format_hang(fields: Mapping[str, Any]) -> str:
    """Return `nothing got on for 600 s: driver waits for groups: engine-0 ... is stopped ...; stacks: runs/x/...`."""
    why, stacks = (escape_unprintable(str(fields.get(key, ""))) for key in ("why", "stacks"))
    return f"nothing got on for {_format_field(fields.get('seconds'))} s: {why}; all stacks: {stacks}"


def format_event(kind: str, fields: Mapping[str, Any]) -> str:
    """Return `engine_lost engine=engine-1 why=...`, each value as plain text, cut to 100 characters."""
    cells = [f"{key}={shorten(_format_field(value), 100)}" for key, value in fields.items()]
    return " ".join([escape_unprintable(kind), *cells])


def _format_field(value: Any) -> str:
    """Return a value of an event as people write it: `engine-0, engine-1`, `none`, `0.0753`."""
    if isinstance(value, list):
        return ", ".join(map(_format_field, value))
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
