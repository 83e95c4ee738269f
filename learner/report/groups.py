"""Describe groups for the report: picture, question, candidates, and each answer with its reward and advantage."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from learner.report.data import RunData
from learner.report.format import cut_lines, format_number, shorten_name
from learner.report.samples import Answer, Sample, make_thumbnail

_ANSWERS, _CANDIDATES = 10, 60  # answers and candidates of a group before the rest is counted
_SHORT = 40  # characters of the longest answer that stands in one line with its numbers
_SAMPLED = (
    "Reward and advantage belong to one answer. Log-prob is of the whole answer, when it was sampled. "
    "Gap is the largest log-prob gap of that step."
)
_GIVEN = {
    "exact": "Every candidate of a row, with the reward it earns. No engine sampled them.",
    "sft": "The right answer of a row, which the run learns. No engine sampled it.",
}


def introduce_groups(run: RunData) -> str:
    """Say out of how many groups those shown were chosen, and what their columns mean."""
    samples = run.samples
    chosen_from = f"Chosen from {samples.seen} groups that the run kept from step {samples.after} on."
    return f"{chosen_from} {_SAMPLED}" if samples.best else chosen_from


def describe_groups(run: RunData, left_out: list[str]) -> list[dict[str, Any]]:
    """Return the groups to show under a title each that says what they were chosen for; note those left out."""
    samples = run.samples
    chosen = {
        "Lowest reward": ("Where the model earns least.", samples.worst),
        "Most divided": ("Some answers earn more than others: these groups teach most.", samples.divided),
        "Highest reward": ("Where it earns most.", samples.best),
        "Given answers": (_GIVEN.get(run.method, "No engine sampled them."), samples.given),
    }
    shown = len({id(one) for _, own in chosen.values() for one in own})
    if samples.seen > shown:
        left_out.append(f"{samples.seen - shown} of {samples.seen} groups kept from step {samples.after} on")
    if samples.earlier:
        left_out.append(f"{samples.earlier} groups kept before step {samples.after}")
    return [
        {"title": title, "why": why, "groups": [_describe_group(run, one) for one in own]}
        for title, (why, own) in chosen.items()
        if own
    ]


def _describe_group(run: RunData, sample: Sample) -> dict[str, Any]:
    picture = make_thumbnail(run.folder, sample.image)
    gap = math.nan if sample.given else _find_value(run, "logprob_gap_max", sample.step)
    return {
        "step": sample.step,
        "prompt": shorten_name(sample.prompt_id),
        "label": shorten_name(sample.label),
        "problem": cut_lines(sample.problem),
        "picture": base64.b64encode(picture).decode() if picture else "",
        "no_picture": bool(sample.image) and not picture,
        "candidates": [shorten_name(one) for one in sample.candidates[:_CANDIDATES]],
        "more_candidates": max(0, len(sample.candidates) - _CANDIDATES),
        "mean": format_number(sample.mean, "{:.2f}"),
        "gap": "" if math.isnan(gap) else f"{gap:.1e}",
        "size": len(sample.answers),
        "given": sample.given,
        **_describe_answers(sample.answers),
    }


def _describe_answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return equal answers once, with their count, the commonest first."""
    alike = Counter((one.text, one.reward, one.cut) for one in answers)
    first = {(one.text, one.reward, one.cut): one for one in reversed(answers)}
    common = alike.most_common(_ANSWERS)
    return {
        "answers": [_describe_answer(first[key], count) for key, count in common],
        "more_answers": len(answers) - sum(count for _, count in common),
        "long": any(len(one.text) > _SHORT for one in answers),
    }


def _describe_answer(one: Answer, count: int) -> dict[str, Any]:
    return {
        "text": cut_lines(one.text),
        "count": count,
        "reward": format_number(one.reward, "{:.3g}"),
        "advantage": format_number(one.advantage, "{:+.2f}"),
        "logprob": format_number(one.logprob, "{:.2f}"),
        "tokens": one.tokens,
        "cut": one.cut,
    }


def _find_value(run: RunData, column: str, step: int) -> float:
    """Return the value of a curve at one step, NaN where there is none."""
    if column not in run.curves:
        return math.nan
    found = run.curves[column][run.curves["step"] == step]
    return float(found[-1]) if len(found) else math.nan
