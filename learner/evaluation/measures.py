"""Measures of many verdicts: shares with bootstrap intervals, F1, confusions, calibration, pass@k.

Axes: N rows of a set, M measures, K candidates of a row, L classes of the set, n sampled answers a row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config.schema import Config
from learner.evaluation.verdicts import NONE, Answer, Verdict

Floats = npt.NDArray[np.float64]

HELD_OUT, BASE, NEW, H = "held-out", "base", "new", "H"  # sets with a meaning
MEANS = (
    "accuracy",
    "lenient",
    "closed_set",
    "closed_set_normalised",
    "invalid_rate",
    "out_of_list_rate",
    "brier",
)
HARMONIC = ("accuracy", "lenient", "closed_set", "closed_set_normalised", "macro_f1")
SCALARS = (*MEANS, "macro_f1", "ece", "consistency")
RESAMPLES = 1000
COVERAGE = 0.95
BINS = 15  # of confidence, as in Guo et al. 2017
PAIRS = 10  # most confused ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The measures of one set as a row of evaluations.jsonl, and the resampled values behind its intervals."""

    row: Mapping[str, Any]
    resampled: Mapping[str, Floats]  # (RESAMPLES,) by measure


def measure(rows: Sequence[Verdict], *, name: str, at: Sequence[int] = (), seed: int = 0) -> Measures:
    """Measure one set; what was not measured is null.

    Args:
        name: of the set; with `seed` it decides the resampling, so that two sets are resampled independently.
        at: k of pass@k and majority@k; by default the powers of two up to n.
    """
    at = at or [2**power for power in range(len(rows[0].samples).bit_length())]
    columns = _make_columns(rows, at)
    found = {key: float(values.mean()) for key, values in columns.items()}
    f1 = MacroF1.of(rows)
    resampled = _resample(columns, f1, seed=[seed, *name.encode()])
    counts = Counter((row.label, row.greedy.named) for row in rows)
    row = {
        "set": name,
        "rows": len(rows),
        **{key: found.get(key) for key in MEANS},
        "macro_f1": f1(np.ones(len(rows))),
        "ece": expected_calibration_error(*_find_confidence(rows)) if "brier" in found else None,
        "consistency": _mean_of_known([row.greedy.consistent for row in rows]),
        "intervals": {key: interval(values) for key, values in resampled.items()},
        "per_class": per_class(rows),
        "confusion": [[*pair, count] for pair, count in sorted(counts.items())],
        "confused": most_confused(counts),
        **{family: {str(k): found[f"{family}/{k}"] for k in at} for family in ("pass_at", "majority_at")},
    }
    return Measures(row=row, resampled=resampled)


def measure_harmonic(base: Measures, new: Measures) -> dict[str, Any]:
    """Return the row of set H: H = 2BN / (B + N) of each share, null where base or new was not measured.

    Accuracy 0.8 on base and 0.6 on new classes give H = 0.686.

    Source: Zhou et al. 2022 (arXiv:2203.05557), after Xian et al. 2017.
    """
    both = [key for key in HARMONIC if base.row[key] is not None and new.row[key] is not None]
    resampled = {key: harmonic_mean(base.resampled[key], new.resampled[key]) for key in both}
    return {
        "set": H,
        "rows": base.row["rows"] + new.row["rows"],
        **dict.fromkeys(HARMONIC),
        **{key: float(harmonic_mean(np.float64(base.row[key]), np.float64(new.row[key]))) for key in both},
        "intervals": {key: interval(values) for key, values in resampled.items()},
    }


def parse_measure(best_by: str) -> tuple[str, str]:
    """Return (set, measure) of `checkpoint.best_by`: "new/lenient" is ("new", "lenient"), "H" is ("H", "accuracy")."""
    if best_by == H:
        return H, "accuracy"
    name, _, measure = best_by.rpartition("/")
    return name or HELD_OUT, measure


def harmonic_mean(one: Floats | np.float64, other: Floats | np.float64) -> Floats:
    """Return 2ab / (a + b), element by element; 0 where both are 0."""
    total = one + other
    return np.asarray(2 * one * other / np.where(total > 0, total, 1))


def interval(values: Floats) -> list[float]:
    """Return [low, high] of the middle COVERAGE of resampled values (the percentile bootstrap, Efron 1979)."""
    outside = (1 - COVERAGE) / 2
    return [float(bound) for bound in np.quantile(values, [outside, 1 - outside])]


def expected_calibration_error(confidence: Floats, right: Floats) -> float:
    """Return the mean of |accuracy - confidence| over BINS equal bins, weighted by rows (Guo et al. 2017, eq. 3).

    Args:
        confidence: (N,) probability of the choice, in (0, 1].
        right: (N,) 1 where the choice is the label, else 0.
    """
    bins = np.ceil(confidence * BINS).astype(int)
    return float(np.abs(np.bincount(bins, right - confidence)).sum() / len(right))


def pass_at(n: int, right: int, k: int) -> float:
    """Return the chance that at least one of k answers is right, drawn from n of which `right` are right.

    It has no bias, unlike 1 - (1 - right/n)^k. With n = 4 and one right, pass@2 is 1 - 3/6 = 0.5.

    Source: Chen et al. 2021 (arXiv:2107.03374), equation 1.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority_at(samples: Sequence[Answer], label: str, k: int) -> bool:
    """Return whether most of the first k answers name the label (Wang et al. 2022, arXiv:2203.11171).

    Of names with as many votes the first one named wins. Answers that name none of the list have no vote.
    """
    votes = Counter(answer.named for answer in samples[:k] if answer.named != NONE)
    return max(votes, key=votes.__getitem__, default=NONE) == label


def per_class(rows: Sequence[Verdict]) -> dict[str, list[int]]:
    """Return {label: [right, rows]}."""
    total = Counter(row.label for row in rows)
    right = Counter(row.label for row in rows if row.greedy.strict)
    return {label: [right[label], total[label]] for label in sorted(total)}


def most_confused(counts: Mapping[tuple[str, str], int]) -> list[list[Any]]:
    """Return [label, answer, count] of the PAIRS most frequent wrong answers that are on the list."""
    wrong = [(label, answer, count) for (label, answer), count in counts.items() if answer not in (label, NONE)]
    return [list(one) for one in sorted(wrong, key=lambda one: (-one[2], one))[:PAIRS]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroF1:
    """The mean of F1 over the classes of a set, for any weights of its rows."""

    labels: npt.NDArray[np.int64]  # (N,) class of each row
    answers: npt.NDArray[np.int64]  # (N,) class that was answered; L for anything else
    classes: int  # L

    @classmethod
    def of(cls, rows: Sequence[Verdict]) -> MacroF1:
        names = sorted({row.label for row in rows})
        codes = {name: code for code, name in enumerate(names)}
        return cls(
            labels=np.array([codes[row.label] for row in rows]),
            answers=np.array([codes.get(row.greedy.named, len(names)) for row in rows]),
            classes=len(names),
        )

    def __call__(self, weights: Floats) -> float:
        """Return macro F1 under (N,) weights; classes that are then neither asked for nor answered are left out."""
        right = np.bincount(self.labels, weights * (self.labels == self.answers), self.classes)
        asked = np.bincount(self.labels, weights, self.classes)
        answered = np.bincount(self.answers, weights, self.classes + 1)[:-1]
        there = asked + answered > 0
        return float((2 * right[there] / (asked + answered)[there]).mean())


def _make_columns(rows: Sequence[Verdict], at: Sequence[int]) -> dict[str, Floats]:
    """Return (N,) values of every measure whose value for a set is the mean over its rows."""
    columns: dict[str, list[float]] = {
        "accuracy": [row.greedy.strict for row in rows],
        "lenient": [row.greedy.lenient for row in rows],
        "invalid_rate": [not row.greedy.well_formed for row in rows],
    }
    if all(row.listed for row in rows):
        columns["out_of_list_rate"] = [row.greedy.named == NONE for row in rows]
    scored = [(row.label, row.closed) for row in rows if row.closed]
    if len(scored) == len(rows):
        columns["closed_set"] = [closed.choice() == label for label, closed in scored]
        columns["closed_set_normalised"] = [closed.choice(normalised=True) == label for label, closed in scored]
        columns["brier"] = [brier(closed.candidates, closed.probabilities(), label) for label, closed in scored]
    for k in at:
        right = [sum(answer.strict for answer in row.samples) for row in rows]
        columns[f"pass_at/{k}"] = [pass_at(len(row.samples), count, k) for row, count in zip(rows, right, strict=True)]
        columns[f"majority_at/{k}"] = [majority_at(row.samples, row.label, k) for row in rows]
    return {key: np.array(values, dtype=np.float64) for key, values in columns.items()}


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def brier(candidates: Sequence[str], probabilities: Floats, label: str) -> float:
    """Return the squared distance of (K,) probabilities from the truth, 0 to 2 (Brier 1950)."""
    of_label = sum(float(p) for candidate, p in zip(candidates, probabilities, strict=True) if candidate == label)
    return float((probabilities**2).sum()) - 2 * of_label + 1


def _find_confidence(rows: Sequence[Verdict]) -> tuple[Floats, Floats]:
    """Return (N,) probabilities of the closed-set choice, and (N,) 1 where it is right, else 0."""
    scored = [(row.label, row.closed) for row in rows if row.closed]
    confidence = np.array([closed.probabilities().max() for _, closed in scored])
    return confidence, np.array([float(closed.choice() == label) for label, closed in scored])


def _resample(columns: Mapping[str, Floats], f1: MacroF1, *, seed: Sequence[int]) -> dict[str, Floats]:
    """Measure RESAMPLES sets of N rows, drawn with replacement from the N there are: (RESAMPLES,) by measure."""
    matrix = np.array(list(columns.values()))  # (M, N)
    count, random = matrix.shape[1], np.random.default_rng(seed)
    made = []
    for _ in range(RESAMPLES):
        weights = np.bincount(random.integers(count, size=count), minlength=count).astype(np.float64)  # (N,)
        made.append([*(matrix @ weights / count), f1(weights)])
    return dict(zip([*columns, "macro_f1"], np.array(made).T, strict=True))


def measure_all(verdicts: Mapping[str, Sequence[Verdict]], config: Config) -> list[dict[str, Any]]:
    """Return one row of measures a set, then the row of H where there are a base and a new set."""
    made: dict[str, Measures] = {
        name: measure(rows, name=name, at=config.evaluation.pass_at_k, seed=config.seed)
        for name, rows in verdicts.items()
    }
    lines = [dict(one.row) for one in made.values()]
    if BASE in made and NEW in made:
        lines.append(measure_harmonic(made[BASE], made[NEW]))
    return lines
