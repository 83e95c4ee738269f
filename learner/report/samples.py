"""Choose the groups a report shows, out of those that a run kept in `samples.jsonl`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev

from common.labels.candidates import candidates
from learner.report.rows import Reader, Row, as_list, as_number, as_text, as_whole

EACH = 3  # groups of each kind
_THUMBNAIL = 128  # pixels of the longer side
_LARGEST = 40_000_000  # pixels of a picture worth opening


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One completion."""

    text: str
    reward: float
    advantage: float  # NaN: not on file
    logprob: float  # nats, of the whole answer when it was sampled; NaN: not on file
    tokens: int | None
    cut: bool  # it reached the limit of tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row of `samples.jsonl`."""

    step: int
    prompt_id: str
    label: str
    problem: str
    candidates: tuple[str, ...]  # empty: an open question
    image: str  # path in the run folder; empty: no picture
    answers: tuple[Answer, ...]
    given: bool  # the method wrote the answers down: no engine sampled them

    @property
    def mean(self) -> float:
        """Return the mean reward of the group."""
        return fmean(one.reward for one in self.answers)

    @property
    def spread(self) -> float:
        """Return the standard deviation of the group's rewards: 0 where all are equal, NaN with one unknown."""
        return math.nan if math.isnan(self.mean) else pstdev(one.reward for one in self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Groups chosen among the `seen` ones, which the run kept from step `after` on."""

    best: tuple[Sample, ...] = ()
    worst: tuple[Sample, ...] = ()
    divided: tuple[Sample, ...] = ()  # of highest spread
    given: tuple[Sample, ...] = ()  # the latest whose answers were not sampled
    seen: int = 0
    after: int = 0
    earlier: int = 0  # groups kept before step `after`


@dataclass(slots=True)
class _TopSamples:
    """Keep the EACH samples of highest score, the later of two equal ones, and one of each prompt."""

    held: dict[str, tuple[float, Sample]] = field(default_factory=dict)

    def offer(self, score: float, sample: Sample) -> None:
        """Keep the sample if its score is high enough; NaN never is."""
        before = self.held.get(sample.prompt_id)
        if math.isnan(score) or (before and before[0] > score):
            return
        self.held[sample.prompt_id] = (score, sample)
        if len(self.held) > EACH:
            least = min(self.held, key=lambda name: (self.held[name][0], self.held[name][1].step))
            del self.held[least]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Return those kept, highest score first."""
        ranked = sorted(self.held.values(), key=lambda pair: (pair[0], pair[1].step), reverse=True)
        return tuple(sample for _, sample in ranked)


@dataclass(slots=True)
class _Choice:
    """The groups to show, while the file is read."""

    best: _TopSamples = field(default_factory=_TopSamples)
    worst: _TopSamples = field(default_factory=_TopSamples)
    divided: _TopSamples = field(default_factory=_TopSamples)
    given: _TopSamples = field(default_factory=_TopSamples)
    seen: int = 0

    def offer(self, sample: Sample) -> None:
        self.seen += 1
        if sample.given:
            self.given.offer(0.0, sample)
            return
        self.best.offer(sample.mean, sample)
        self.worst.offer(-sample.mean, sample)
        self.divided.offer(sample.spread or math.nan, sample)


def read_samples(reader: Reader, *, after: int) -> Samples:
    """Choose among the groups kept from step `after` on, since early on everything was wrong.

    A run so short that it kept none after that step shows its earlier ones.
    """
    late, early, earlier = _Choice(), _Choice(), 0
    for row in reader.read_rows("samples.jsonl"):
        is_early = (as_whole(row.get("step")) or 0) < after
        earlier += is_early
        sample = _parse_sample(row)
        if sample.answers:
            (early if is_early else late).offer(sample)

    if earlier and not late.seen:
        late, after, earlier = early, 0, 0
    return Samples(
        best=late.best.samples,
        worst=late.worst.samples,
        divided=late.divided.samples,
        given=late.given.samples,
        seen=late.seen,
        after=after,
        earlier=earlier,
    )


def _parse_sample(row: Row) -> Sample:
    logprobs = as_list(row.get("logprobs"))
    problem = as_text(row.get("problem"))
    offered = as_list(row.get("candidates")) or candidates(problem) or []
    rows = [one for one in as_list(row.get("completions")) if isinstance(one, dict)]
    return Sample(
        step=as_whole(row.get("step")) or 0,
        prompt_id=as_text(row.get("prompt_id")),
        label=as_text(row.get("label")),
        problem=problem,
        candidates=tuple(as_text(one) for one in offered),
        image=as_text(row.get("image")),
        given=row.get("origin") == "given" or row.get("engine_id") == "written",  # the second in older runs
        answers=tuple(
            _parse_answer(one, as_number(logprobs[place]) if place < len(logprobs) else math.nan)
            for place, one in enumerate(rows)
        ),
    )


def _parse_answer(row: Mapping[str, object], logprob: float) -> Answer:
    return Answer(
        text=as_text(row.get("text")),
        reward=as_number(row.get("reward")),
        advantage=as_number(row.get("advantage")),
        logprob=logprob,
        tokens=as_whole(row.get("tokens")),
        cut=row.get("finish_reason") == "length",
    )


def make_thumbnail(folder: Path, name: str) -> bytes | None:
    """Draw a picture of the run folder anew, as a PNG of bounded size; None where there is no picture at that path."""
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
    except Exception:  # noqa: BLE001  # Pillow raises anything for a damaged file
        return None
    return out.getvalue()
