"""Every measure against scikit-learn, SciPy, brute force or a table made by hand."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap  # type: ignore[import-untyped]
from sklearn.metrics import brier_score_loss, f1_score

from common.config.schema import DataConfig
from common.types import Example
from learner.evaluation import measures
from learner.evaluation.measures import BINS, interval, majority_at, measure, measure_harmonic, parse_measure, pass_at
from learner.evaluation.verdicts import NONE, Answer, ClosedScores, Verdict, give_verdict

LABELS = ("ant", "bee", "cat")


def answer(named: str, label: str = "") -> Answer:
    return Answer(text=named, strict=named == label, lenient=named == label, well_formed=True, named=named)


def rows(*pairs: tuple[str, str], **more: Any) -> list[Verdict]:
    """Verdicts on rows of (label, what was answered)."""
    return [
        Verdict(id=f"test/{i}", problem="?", label=label, listed=True, greedy=answer(said, label), **more)
        for i, (label, said) in enumerate(pairs)
    ]


def closed(probabilities: list[float], lengths: tuple[int, ...] = (1, 1, 1)) -> ClosedScores:
    logprobs = tuple(float(value) for value in np.log(probabilities) - 5)  # most of the mass is on no candidate
    return ClosedScores(candidates=LABELS, logprobs=logprobs, lengths=lengths)


pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "dog", NONE])), min_size=1, max_size=30)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(pairs=pairs)
def test_macro_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    """Of the classes that are asked for; an answer outside them is wrong for the class and nobody's false alarm."""
    truth, said = zip(*pairs, strict=True)
    expected = f1_score(truth, said, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert measure(rows(*pairs), name="x").row["macro_f1"] == pytest.approx(expected)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(pairs=pairs)
def test_counts_are_a_confusion_matrix(pairs: list[tuple[str, str]]) -> None:
    row = measure(rows(*pairs), name="x").row
    matrix = {(label, said): count for label, said, count in row["confusion"]}
    assert matrix == Counter(pairs)
    assert sum(matrix.values()) == row["rows"] == len(pairs)
    right = sum(count for (label, said), count in matrix.items() if label == said)
    assert row["accuracy"] == pytest.approx(right / len(pairs))
    assert row["per_class"] == {
        label: [matrix.get((label, label), 0), sum(count for (one, _), count in matrix.items() if one == label)]
        for label in sorted({label for label, _ in pairs})
    }


def test_nothing_confused() -> None:
    row = measure(rows(("ant", "ant"), ("bee", "bee"), ("bee", NONE)), name="x").row
    assert row["confused"] == []
    assert row["out_of_list_rate"] == pytest.approx(1 / 3)
    assert row["confusion"] == [["ant", "ant", 1], ["bee", "", 1], ["bee", "bee", 1]]


def test_most_confused_pairs_come_first_and_ties_by_name() -> None:
    said = [("cat", "bee")] * 2 + [("bee", "ant")] * 3 + [("ant", "bee")] * 2 + [("ant", "ant")] * 9
    assert measure(rows(*said), name="x").row["confused"] == [["bee", "ant", 3], ["ant", "bee", 2], ["cat", "bee", 2]]


def test_a_single_class() -> None:
    row = measure(rows(("ant", "ant"), ("ant", "bee")), name="x").row
    assert (row["accuracy"], row["macro_f1"]) == (0.5, pytest.approx(2 / 3))
    assert row["intervals"]["accuracy"] == [0.0, 1.0]


def test_what_was_not_measured_is_null() -> None:
    row = measure(rows(("ant", "ant")), name="x").row
    assert [row[key] for key in ("closed_set", "closed_set_normalised", "ece", "brier")] == [None] * 4
    assert (row["pass_at"], row["majority_at"]) == ({}, {})
    open_ended = Verdict(id="test/0", problem="?", label="ant", listed=False, greedy=answer("ant", "ant"))
    assert measure([open_ended], name="x").row["out_of_list_rate"] is None


def test_closed_set_by_sum_and_by_mean() -> None:
    """A long label loses by its sum and wins by its mean."""
    scores = closed([0.5, 0.3, 0.2], lengths=(1, 9, 1))
    assert (scores.choice(), scores.choice(normalised=True)) == ("ant", "bee")
    row = measure(rows(("bee", "ant"), ("ant", "ant"), closed=scores), name="x").row
    assert (row["closed_set"], row["closed_set_normalised"]) == (0.5, 0.5)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    table=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.floats(0.01, 1), min_size=3, max_size=3)), min_size=1, max_size=30
    )
)
def test_calibration_is_brute_force(table: list[tuple[int, list[float]]]) -> None:
    verdicts, chosen, given_ = [], [], []
    for number, (truth, weights) in enumerate(table):
        probabilities = [weight / sum(weights) for weight in weights]
        given_.append(probabilities)
        chosen.append((max(probabilities), int(np.argmax(probabilities)) == truth))
        verdicts += rows((LABELS[truth], "ant"), closed=closed(probabilities))
        scores = verdicts[number].closed
        assert scores is not None
        np.testing.assert_allclose(scores.probabilities(), probabilities, rtol=1e-9)
    row = measure(verdicts, name="x").row
    error = 0.0
    for bin_ in range(BINS):
        inside = [one for one in chosen if bin_ / BINS < one[0] <= (bin_ + 1) / BINS]
        if inside:
            gap = fmean(c for c, _ in inside) - fmean(r for _, r in inside)
            error += abs(gap) * len(inside) / len(chosen)
    if not any(np.isclose(c * BINS, round(c * BINS)) for c, _ in chosen):  # on a bin's very edge rounding decides
        assert row["ece"] == pytest.approx(error)
    expected = brier_score_loss(
        [LABELS[truth] for truth, _ in table], np.array(given_), labels=list(LABELS), scale_by_half=False
    )
    assert row["brier"] == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_pass_at_k_is_the_mean_over_all_draws(n: int) -> None:
    for right in range(n + 1):
        results = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            draws = list(combinations(results, k))
            assert pass_at(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(
    ("said", "k", "winner"),
    [
        (["ant", "bee", "bee"], 1, "ant"),
        (["ant", "bee", "bee"], 3, "bee"),
        (["bee", "ant", "ant", "bee"], 4, "bee"),  # of equals the first named
        (["", "", "ant"], 3, "ant"),  # no vote for none of the list
        (["", ""], 2, None),
    ],
)
def test_majority(said: list[str], k: int, winner: str | None) -> None:
    assert [label for label in LABELS if majority_at([answer(name) for name in said], label, k)] == (
        [winner] if winner else []
    )


def test_samples_are_measured_at_powers_of_two_or_where_asked() -> None:
    samples = tuple(answer(name, "ant") for name in ("bee", "ant", "ant", "ant", "bee"))
    row = measure(rows(("ant", "bee"), samples=samples), name="x").row
    assert row["pass_at"] == {"1": pytest.approx(0.6), "2": pytest.approx(0.9), "4": 1.0}
    assert row["majority_at"] == {"1": 0.0, "2": 0.0, "4": 1.0}
    assert measure(rows(("ant", "bee"), samples=samples), name="x", at=[5]).row["pass_at"] == {"5": 1.0}


def many(right: int, wrong: int) -> list[Verdict]:
    return rows(*[("ant", "ant")] * right, *[("bee", "ant")] * wrong)


def test_intervals_are_scipys_percentile_bootstrap() -> None:
    made = measure(many(150, 50), name="x")
    values = np.array([1.0] * 150 + [0.0] * 50)
    theirs = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    assert made.row["intervals"]["accuracy"] == pytest.approx([theirs.low, theirs.high], abs=0.012)
    assert set(made.row["intervals"]) >= {"accuracy", "lenient", "macro_f1", "invalid_rate"}
    low, high = made.row["intervals"]["macro_f1"]
    assert low <= made.row["macro_f1"] <= high


def test_resampling_follows_seed_and_set() -> None:
    draws = (("a", 1), ("a", 1), ("a", 2), ("b", 1))
    found = [measure(many(7, 3), name=name, seed=seed).resampled["accuracy"] for name, seed in draws]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2]) and not np.array_equal(found[0], found[3])


def test_h_is_the_harmonic_mean_with_an_interval_of_its_own() -> None:
    base, new = measure(many(160, 40), name="base"), measure(many(80, 120), name="new")
    line = measure_harmonic(base, new)
    assert line["set"] == "H" and line["rows"] == 400
    assert line["accuracy"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert line["closed_set"] is None
    draws = np.random.default_rng(0).binomial(200, [[0.8], [0.4]], size=(2, 20000)) / 200
    expected = interval(2 * draws[0] * draws[1] / draws.sum(0))
    assert line["intervals"]["accuracy"] == pytest.approx(expected, abs=0.012)
    assert measure_harmonic(measure(many(0, 3), name="base"), measure(many(0, 3), name="new"))["accuracy"] == 0.0


@pytest.mark.parametrize(
    ("best_by", "place"),
    [
        ("accuracy", ("held-out", "accuracy")),
        ("H", ("H", "accuracy")),
        ("H/closed_set", ("H", "closed_set")),
        ("new/macro_f1", ("new", "macro_f1")),
    ],
)
def test_names_of_measures(best_by: str, place: tuple[str, str]) -> None:
    assert parse_measure(best_by) == place


def test_verdicts_of_an_answer() -> None:
    """Strict, lenient, form and name apart: "tiger shark" holds "tiger", an alias is the label, nothing is parsed."""
    problem = "What is it?\nPlease choose one from list [ tiger, tiger shark, BAE 146-200, BAE 146-300]."
    data = DataConfig(aliases={"tiger": ["Panthera tigris"]})

    def verdicts(text: str, label: str = "tiger") -> tuple[Any, ...]:
        example = Example(id="test/0", problem=problem, image=None, label=label, columns={})
        one = give_verdict(example, text, data=data, labels=(), samples=["tiger"])
        assert one.listed and one.samples[0].named == "tiger"
        return one.greedy.strict, one.greedy.lenient, one.greedy.well_formed, one.greedy.named

    assert verdicts("tiger") == (True, True, True, "tiger")
    assert verdicts("tiger shark") == (False, True, True, "tiger shark")
    assert verdicts("Panthera tigris") == (True, True, True, "tiger")
    assert verdicts("a tiger\nperhaps") == (False, True, False, NONE)
    assert verdicts("BAE 146-200", "BAE 146-300") == (False, False, True, "BAE 146-200")


def test_consistency_is_of_the_answers_with_a_thought() -> None:
    problem = "What is it?\nPlease choose one from list [ ant, bee, cat]."
    example = Example(id="test/0", problem=problem, image=None, label="cat", columns={})
    said = [f"<think>{thought}</think><answer>cat</answer>" for thought in ("a cat", "bee or cat", "an ant")]
    verdicts = [give_verdict(example, text, data=DataConfig(mode="think"), labels=()) for text in (*said, "cat")]
    assert [row.greedy.consistent for row in verdicts] == [1.0, 0.5, 0.0, None]
    assert measure(verdicts, name="x").row["consistency"] == 0.5
    assert measure(verdicts[3:], name="x").row["consistency"] is None


def test_an_open_ended_answer_may_name_any_class_of_the_set() -> None:
    example = Example(id="test/0", problem="What is it?", image=None, label="cat", columns={})
    one = give_verdict(example, "bee", data=DataConfig(), labels=LABELS)
    assert (one.listed, one.greedy.named) == (False, "bee")
    assert measures.most_confused(Counter([("cat", one.greedy.named)])) == [["cat", "bee", 1]]
