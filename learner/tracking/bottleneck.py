"""What a run waits for most: one part, and one setting that helps.

All follows from the seconds of each step that `metrics.jsonl` has. A step costs what the driver waits for, or does
itself. A part that works while another one is waited for costs nothing, and is no bottleneck.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.config.schema import Config
from learner.tracking.advice import advise_on_speed

WINDOW = 20  # steps that are judged together while a run goes on
LEAST = 3  # steps that are judged at its end
CLEAR = 0.05  # share of the time by which a part must lead before another is named


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """The part that a run waits for most."""

    part: str  # "engine", "reward", "learner", "driver", "data" or "weights"
    share: float  # of the time of its steps
    step: int  # steps done
    what: str  # "the engines, with 72% of the time spent waiting for groups"
    advice: str  # "Let more engines sample. Try rollout.engines=2"


def measure_waits(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds that a step waited for each part, from its row of `metrics.jsonl`.

    The driver's are those in which it was at work itself, also on what the learner gets. Of 0.9 s `seconds/learn`, in
    which the busiest rank learned for 0.7, the driver has 0.2. Where ranks learn while engines sample it has none.
    """
    learn, learner = row["seconds/learn"], row["learner_seconds"]
    own = max(0.0, learn - learner)
    data = min(row["data_seconds"], row["seconds/idle"])
    return {
        "engine": row["seconds/generate"],
        "reward": row["seconds/reward"],
        "learner": learn - own,
        "driver": row["seconds/idle"] - data + own,
        "data": data,
        "weights": row["seconds/publish"],
    }


def measure_shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of each part in the time of several steps, the largest first.

    The longest step is left out: an engine may have been replaced in it, or a rank.
    """
    kept = sorted(rows, key=lambda row: row["step_seconds"])[: max(1, len(rows) - 1)]
    waits = [measure_waits(row) for row in kept]
    total = sum(row["step_seconds"] for row in kept) or 1.0
    shares = {part: sum(own[part] for own in waits) / total for part in waits[0]}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


class BottleneckWatch:
    """Reads the records of one start of a run, and says when another part has become the bottleneck."""

    def __init__(self, config: Config) -> None:
        self.spare: Mapping[str, float] | None = None  # what the cluster has left; None: it may grow, or nobody knows
        self._config = config
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=WINDOW)
        self._begun = False
        self._told: str | None = None

    def observe(self, row: Mapping[str, Any]) -> Bottleneck | None:
        """Judge a row of `metrics.jsonl`. Return the bottleneck where it is clear, and another than was told.

        The first step is passed over: much is made in it that stays.
        """
        if not self._begun:
            self._begun = True
            return None
        self._rows.append(row)
        if len(self._rows) < WINDOW:
            return None
        (first, most), (_, next_most), *_ = measure_shares(self._rows).items()
        if first == self._told or most < next_most + CLEAR:
            return None
        self._told = first
        return self.find()

    def find(self) -> Bottleneck | None:
        """Return the bottleneck of the last steps; None where there are too few of them."""
        if len(self._rows) < LEAST:
            return None
        shares = measure_shares(self._rows)
        part, share = next(iter(shares.items()))
        advice = advise_on_speed(part, shares, self._config, self.spare)
        what = _NAMES[part].format(f"{share:.0%}")
        return Bottleneck(part=part, share=share, step=int(self._rows[-1]["step"]) + 1, what=what, advice=advice)


_NAMES = {
    "engine": "the engines, with {} of the time spent waiting for groups",
    "reward": "the reward functions, with {} of the time spent waiting for rewards",
    "learner": "the learner, with {} of the time spent waiting for its ranks",
    "driver": "the driver, which is at work itself for {} of the time",
    "data": "the data, with {} of the time spent waiting for rows",
    "weights": "the transfer of weights, with {} of the time",
}


def describe_bottleneck(found: Bottleneck) -> dict[str, Any]:
    """Return the fields of the event that tells it."""
    return asdict(found) | {"share": round(found.share, 3)}
