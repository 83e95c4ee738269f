"""Watches a run for collapse: judges the last steps against the best before them, and says what to change.

A sign is told once, and again only after it was gone for WINDOW steps. All follows from the records, so a resumed run
that reads them again knows what it has told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, sqrt
from statistics import fmean, median, pvariance
from typing import Any

from common.config.schema import Config
from learner.evaluation.measures import HELD_OUT
from learner.tracking.advice import advise

WINDOW = 20  # steps that are judged together: with 16 prompts a step, 320 groups
START = 5  # first steps, before a run can have moved far: what entropy is compared with
NO_SIGNAL = 0.9  # share of zero-std groups from which a step teaches next to nothing
SURE = 0.1  # share of its first entropy below which a policy explores no more
WORTH = 0.8  # share of the largest reward from which it may well be sure of itself
NOISE = 2.0  # standard errors within which two windows earn the same
INVALID = 0.2  # rise of the share of malformed or out-of-list answers
CUT = 0.3  # rise of the share of completions cut for length
SIGNS = frozenset(
    {
        *("zero_std_groups", "entropy_collapse", "entropy_growth", "kl_growth"),
        *("length_growth", "length_collapse", "reward_collapse", "invalid_answers"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One sign of collapse, as it is told, and what to do about it."""

    kind: str  # one of SIGNS
    step: int  # steps done
    what: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Several steps in a row: means, and of the KL the median, since one token can make it huge."""

    end: int  # steps done after the last of them
    reward: float
    error: float  # standard error of that mean
    kl: float
    entropy: float
    length: float
    truncated: float
    zero_std: float

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Window:
        """Summarise rows of `metrics.jsonl`. What is not a number there is NaN, and no sign of anything."""

        def read(name: str) -> list[float]:
            return [float("nan") if row.get(name) is None else row[name] for row in rows]

        rewards = read("reward")
        return cls(
            end=rows[-1]["step"] + 1,
            reward=fmean(rewards),
            error=sqrt(pvariance(rewards) / len(rows)) if not any(map(isnan, rewards)) else float("nan"),
            kl=median(read("kl")),
            entropy=fmean(read("entropy")),
            length=fmean(read("completion_length")),
            truncated=fmean(read("truncated_share")),
            zero_std=fmean(read("zero_std_share")),
        )

    def earns_more_than(self, other: Window, errors: float = NOISE) -> bool:
        """Whether the reward is higher, by more than so many standard errors."""
        return self.reward - other.reward > errors * sqrt(self.error**2 + other.error**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The windows that the last one is compared with."""

    start: Window  # the first START steps
    before: Window  # the WINDOW steps before the last WINDOW
    best: Window  # of the highest reward: the first that none surpassed beyond noise
    longest: Window  # of the longest completions
    shortest: Window  # of the fewest completions that were cut
    least: float  # lowest reward


def find_signs(now: Window, past: Past, *, samples: bool, largest: float | None) -> Iterator[tuple[str, str]]:
    """Yield each sign of collapse in the last steps, and what was seen.

    Args:
        samples: engines sample what is learnt. Else there are no groups of equal rewards, and given answers neither
            grow nor explore.
        largest: the most that a completion can earn; None where nobody knows.
    """
    if samples:
        yield from _find_lost_signal(now, past, largest)
        yield from _find_odd_lengths(now, past)
    if now.kl > past.best.kl + max(0.5, 2 * past.best.kl) and past.best.end < now.end:
        yield "kl_growth", f"KL {now.kl:.2g} to the reference, {past.best.kl:.2g} when the reward was at its best"
    fall, range_ = past.best.reward - now.reward, max(past.best.reward - min(0.0, past.least), abs(past.best.reward))
    if fall > 0.5 * range_ and past.best.earns_more_than(now, errors=2 * NOISE):
        yield "reward_collapse", f"reward {now.reward:.3g}, {past.best.reward:.3g} after {past.best.end} steps"


def _find_lost_signal(now: Window, past: Past, largest: float | None) -> Iterator[tuple[str, str]]:
    """Yield what keeps groups from teaching: all answers alike, or all answers noise."""
    if now.zero_std > NO_SIGNAL:
        level = f"reward {now.reward:.3g}" + (f" of {largest:g}" if largest else "")
        yield "zero_std_groups", f"{now.zero_std:.0%} of the groups teach nothing: all answers earn the same, {level}"
    idle = not now.earns_more_than(past.before, errors=1.0)
    worth = now.reward >= WORTH * largest if largest else not past.best.earns_more_than(now)
    said = f"entropy {now.entropy:.2g}, {past.start.entropy:.2g} at first, and the reward stands still"
    if idle and not worth and now.entropy < SURE * past.start.entropy:
        yield "entropy_collapse", said
    if idle and now.entropy > 2 * past.start.entropy + 0.5:
        yield "entropy_growth", said


def _find_odd_lengths(now: Window, past: Past) -> Iterator[tuple[str, str]]:
    """Yield completions that grow to their limit, or shrink to nothing."""
    if now.truncated > past.shortest.truncated + CUT:
        yield "length_growth", f"{now.truncated:.0%} of the completions are cut, {past.shortest.truncated:.0%} before"
    longest = past.longest
    short = now.length < 0.25 * longest.length and not now.earns_more_than(longest)
    if short or now.length < 1.5 <= 0.75 * longest.length:
        yield "length_collapse", f"{now.length:.3g} tokens a completion, {longest.length:.3g} before"


class CollapseWatch:
    """Reads the records of a run in their order, and returns each sign of collapse once."""

    def __init__(self, config: Config) -> None:
        self.told: dict[str, int] = {}  # sign -> steps done when it was last told
        self._config, self._samples = config, config.sampled_prompts > 0
        self._largest = find_largest_reward(config)
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=2 * WINDOW)
        self._start: Window | None = None
        self._past: Past | None = None
        self._seen: dict[str, int] = {}  # sign that is on -> steps done when it was last seen
        self._least_invalid = inf

    def observe(self, row: Mapping[str, Any]) -> list[Alarm]:
        """Judge a row of `metrics.jsonl`; return what was not told before."""
        self._rows.append(row)
        rows = list(self._rows)
        if len(rows) == START and self._start is None:
            self._start = Window.of(rows)
        if len(rows) < WINDOW or self._start is None:
            return []
        now = Window.of(rows[-WINDOW:])
        self._past = past = self._remember(now, rows)
        signs = dict(find_signs(now, past, samples=self._samples, largest=self._largest))
        return self._tell(now.end, signs, lasts=WINDOW, kinds=SIGNS - {"invalid_answers"})

    def observe_evaluation(self, step: int, line: Mapping[str, Any]) -> list[Alarm]:
        """Judge a line of `evaluations.jsonl`; return what was not told before."""
        if line.get("set", HELD_OUT) != HELD_OUT:
            return []
        invalid = max(line.get("invalid_rate") or 0.0, line.get("out_of_list_rate") or 0.0)
        least = self._least_invalid = min(self._least_invalid, invalid)
        noise = 1.5 / sqrt(line.get("rows") or 1)  # three standard errors of a share of one half
        signs = {}
        if invalid - least > max(INVALID, noise):
            signs = {
                "invalid_answers": f"{invalid:.0%} of the answers to held-out rows are invalid, {least:.0%} before"
            }
        return self._tell(step, signs, lasts=0, kinds={"invalid_answers"})

    def _remember(self, now: Window, rows: Sequence[Mapping[str, Any]]) -> Past:
        """Return what `now` is compared with, itself included where it is the best."""
        start, past = self._start, self._past
        assert start is not None
        known = [past.longest, past.shortest, now] if past else [start, now]
        best = past.best if past else start
        before = Window.of(rows[: max(START, len(rows) - WINDOW)])
        return Past(
            start=start,
            before=before,
            best=now if now.earns_more_than(best) or isnan(best.reward) else best,
            longest=max(known, key=lambda one: -inf if isnan(one.length) else one.length),
            shortest=min(known, key=lambda one: inf if isnan(one.truncated) else one.truncated),
            least=min(past.least if past else start.reward, before.reward),
        )

    def _tell(
        self, step: int, signs: Mapping[str, str], *, lasts: int, kinds: frozenset[str] | set[str]
    ) -> list[Alarm]:
        """Return warnings of the signs that are not on yet; one of `kinds` is off after more than `lasts` steps."""
        fresh = [kind for kind in signs if kind not in self._seen]
        self._seen |= dict.fromkeys(signs, step)
        for kind in kinds & self._seen.keys():
            if step - self._seen[kind] > lasts:
                del self._seen[kind]
        self.told |= dict.fromkeys(fresh, step)
        return [Alarm(kind=kind, step=step, what=signs[kind], advice=advise(kind, self._config)) for kind in fresh]


def find_largest_reward(config: Config) -> float | None:
    """Return the most that a completion can earn, if all functions are Rollcall's own: each gives 1 at most, and
    `repetition` 0. None where one is not, or none gives more than 0."""
    weights = {name: weight for name, weight in config.reward.functions.items() if weight > 0}
    if any(":" in name for name in weights):
        return None
    return sum(weight for name, weight in weights.items() if name != "repetition") or None
