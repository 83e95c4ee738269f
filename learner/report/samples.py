"""The groups a report shows: those of highest and lowest reward, and the most divided, of what a run kept."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev

from common.labels.candidates import candidates
from learner.report.rows import Reader, Row, items, number, text, whole

EACH = 3  # groups of a kind
_THUMBNAIL = 128  # pixels, longer side
_LARGEST = 40_000_000  # pixels of a picture worth opening


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One completion."""

    text: str
    reward: float
    advantage: float  # NaN: not on file
    logprob: float  # of the whole answer as sampled; NaN: not on file
    tokens: int | None
    cut: bool  # ended for length


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row of `samples.jsonl`."""

    step: int
    prompt_id: str
    label: str
    problem: str
    candidates: tuple[str, ...]  # empty: an open question
    image: str  # its path in the run folder; empty: none
    answers: tuple[Answer, ...]

    @property
    def mean(self) -> float:
        return fmean(one.reward for one in self.answers)

    @property
    def spread(self) -> float:
        return pstdev(one.reward for one in self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Groups chosen among `seen`, which were kept from step `after` on."""

    best: tuple[Sample, ...] = ()
    worst: tuple[Sample, ...] = ()
    divided: tuple[Sample, ...] = ()  # these teach most
    seen: int = 0
    after: int = 0
    earlier: int = 0  # kept before that


@dataclass(slots=True)
class _Chosen:
    """The few samples of greatest score, of equal ones the latest; of one prompt only one."""

    held: dict[str, tuple[float, Sample]] = field(default_factory=dict)

    def offer(self, score: float, sample: Sample) -> None:
        before = self.held.get(sample.prompt_id)
        if math.isnan(score) or (before and before[0] > score):
            return
        self.held[sample.prompt_id] = (score, sample)
        if len(self.held) > EACH:
            least = min(self.held, key=lambda name: (self.held[name][0], self.held[name][1].step))
            del self.held[least]

    @property
    def samples(self) -> tuple[Sample, ...]:
        ranked = sorted(self.held.values(), key=lambda pair: (pair[0], pair[1].step), reverse=True)
        return tuple(sample for _, sample in ranked)


def read_samples(reader: Reader, *, after: int) -> Samples:
    """Choose from `samples.jsonl`: of the steps from `after` on, since everything was wrong once."""
    best, worst, divided = _Chosen(), _Chosen(), _Chosen()
    seen = earlier = 0
    for row in reader.rows("samples.jsonl"):
        if (whole(row.get("step")) or 0) < after:
            earlier += 1
            continue
        sample = _sample(row)
        if sample.answers:
            seen += 1
            best.offer(sample.mean, sample)
            worst.offer(-sample.mean, sample)
            divided.offer(sample.spread or math.nan, sample)
    return Samples(
        best=best.samples, worst=worst.samples, divided=divided.samples, seen=seen, after=after, earlier=earlier
    )


def _sample(row: Row) -> Sample:
    logprobs = items(row.get("logprobs"))
    problem = text(row.get("problem"))
    offered = items(row.get("candidates")) or candidates(problem) or []
    rows = [one for one in items(row.get("completions")) if isinstance(one, dict)]
    return Sample(
        step=whole(row.get("step")) or 0,
        prompt_id=text(row.get("prompt_id")),
        label=text(row.get("label")),
        problem=problem,
        candidates=tuple(text(one) for one in offered),
        image=text(row.get("image")),
        answers=tuple(
            _answer(one, number(logprobs[place]) if place < len(logprobs) else math.nan)
            for place, one in enumerate(rows)
        ),
    )


def _answer(row: Mapping[str, object], logprob: float) -> Answer:
    return Answer(
        text=text(row.get("text")),
        reward=number(row.get("reward")),
        advantage=number(row.get("advantage")),
        logprob=logprob,
        tokens=whole(row.get("tokens")),
        cut=row.get("finish_reason") == "length",
    )


def thumbnail(folder: Path, name: str) -> bytes | None:
    """A picture of the run folder as a PNG of bounded size, drawn anew; None where it is not there or is no picture."""
    from PIL import Image

    try:
        path = (folder / name).resolve()
        if not name or not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > _LARGEST:
                return None
            small = picture.convert("RGB")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        out = io.BytesIO()
        small.save(out, format="PNG", optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow makes of damage
        return None
    return out.getvalue()
