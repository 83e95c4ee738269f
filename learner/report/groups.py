"""What a report says of groups: picture, question, candidates, and each answer with its reward and advantage."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from learner.report.data import RunData
from learner.report.format import cut_lines, form, name
from learner.report.samples import Answer, Sample, thumbnail

_ANSWERS, _CANDIDATES = 10, 60  # of a group, before the rest is counted
_SHORT = 40  # characters of answers that stand in one line with their numbers


def groups(run: RunData, left_out: list[str]) -> list[dict[str, Any]]:
    """The chosen ones, by what they were chosen for."""
    chosen = {
        "Lowest reward": ("What the model still gets wrong.", run.samples.worst),
        "Most divided": ("Some answers right, some wrong: these teach most.", run.samples.divided),
        "Highest reward": ("What it gets right.", run.samples.best),
    }
    shown, seen = len({id(one) for _, samples in chosen.values() for one in samples}), run.samples.seen
    if seen > shown:
        left_out.append(f"{seen - shown} of {seen} groups kept from step {run.samples.after} on")
    if run.samples.earlier:
        left_out.append(f"{run.samples.earlier} groups kept before step {run.samples.after}")
    return [
        {"title": title, "why": why, "groups": [_group(run, one) for one in samples]}
        for title, (why, samples) in chosen.items()
        if samples
    ]


def _group(run: RunData, sample: Sample) -> dict[str, Any]:
    picture = thumbnail(run.folder, sample.image)
    gap = _at(run, "logprob_gap_max", sample.step)
    return {
        "step": sample.step,
        "prompt": name(sample.prompt_id),
        "label": name(sample.label),
        "problem": cut_lines(sample.problem),
        "picture": base64.b64encode(picture).decode() if picture else "",
        "no_picture": bool(sample.image) and not picture,
        "candidates": [name(one) for one in sample.candidates[:_CANDIDATES]],
        "more_candidates": max(0, len(sample.candidates) - _CANDIDATES),
        "mean": form(sample.mean, "{:.2f}"),
        "gap": "" if math.isnan(gap) else f"{gap:.1e}",
        "size": len(sample.answers),
        **_answers(sample.answers),
    }


def _answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """Equal answers once, with their number; the commonest first."""
    alike = Counter((one.text, one.reward, one.cut) for one in answers)
    first = {(one.text, one.reward, one.cut): one for one in reversed(answers)}
    common = alike.most_common(_ANSWERS)
    return {
        "answers": [_answer(first[key], count) for key, count in common],
        "more_answers": len(answers) - sum(count for _, count in common),
        "long": any(len(one.text) > _SHORT for one in answers),
    }


def _answer(one: Answer, count: int) -> dict[str, Any]:
    return {
        "text": cut_lines(one.text),
        "count": count,
        "reward": form(one.reward, "{:.3g}"),
        "advantage": form(one.advantage, "{:+.2f}"),
        "logprob": form(one.logprob, "{:.2f}"),
        "tokens": one.tokens,
        "cut": one.cut,
    }


def _at(run: RunData, column: str, step: int) -> float:
    """The value of a curve at one step, NaN where there is none."""
    if column not in run.curves:
        return math.nan
    found = run.curves[column][run.curves["step"] == step]
    return float(found[-1]) if len(found) else math.nan
