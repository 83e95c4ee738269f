"""The histogram of log-prob gaps: every step counts, by lag, and nothing foreign does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.types import GAP_EDGES
from learner.report.histogram import Bars, draw_histogram
from tests.helpers.fake_run import count_gaps, record
from tests.helpers.made_run import made_run
from tests.learner.report.test_report import page

pytestmark = pytest.mark.slow  # draws pages

BINS = len(GAP_EDGES) + 1
TITLE = "Histogram of log-prob gaps"


def rewrite(run: Path, **columns: Any) -> Path:
    """Put further columns into every row, or take those out that are None."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    changed = [{key: value for key, value in {**row, **columns}.items() if value is not None} for row in rows]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in changed))
    return run


def test_lags_are_named_where_there_is_more_than_one(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    text = page(run, drawn=True).text
    assert TITLE in text and "gap of a token, nats" in text and "share of tokens" in text
    assert "same weights" not in text
    rewrite(run, **{"gap_counts/1": list(count_gaps(1e-2)), "gap_counts/4": list(count_gaps(0.1))})
    text = page(run, drawn=True).text
    assert all(name in text for name in ("same weights", "weights one step older", "weights 4 steps older"))
    assert TITLE in page(run, made_run(tmp_path / "other"), drawn=True).text


def test_counts_of_all_steps_add_up(tmp_path: Path) -> None:
    from learner.report.data import read_run

    found = read_run(made_run(tmp_path / "run", steps=7), "run").gap_counts
    assert found.keys() == {0}
    assert found[0].tolist() == [7 * count for count in record(0).gap_counts["0"]]


@pytest.mark.parametrize(
    "foreign",
    [
        {"gap_counts/0": "many"},
        {"gap_counts/0": [1] * (BINS + 1)},
        {"gap_counts/0": [1.0] * (BINS - 1) + [None]},
        {"gap_counts/0": [-1] * BINS},
        {"gap_counts/0": [0] * BINS},
        {"gap_counts/0": [10**400] * BINS},
        {"gap_counts/0": [[1]] * BINS},
        {"gap_counts/0": None},
        {"gap_counts/0": None, "gap_counts/-1": [1] * BINS, "gap_counts/<b>": [1] * BINS, "gap_counts/": [1] * BINS},
    ],
)
def test_what_is_no_count_is_not_drawn(tmp_path: Path, foreign: dict[str, Any]) -> None:
    run = rewrite(made_run(tmp_path / "run", steps=3), **foreign)
    assert TITLE not in page(run, drawn=True).text


def test_a_run_of_a_thousand_lags_has_a_legend_of_seven(tmp_path: Path) -> None:
    run = rewrite(made_run(tmp_path / "run", steps=3), **{f"gap_counts/{lag}": [1] * BINS for lag in range(1, 1000)})
    text = page(run, drawn=True).text
    assert text.count("steps older") == 5  # beside those of lag 0 and 1


@pytest.mark.parametrize("bin_", [0, 7, BINS - 1])
def test_one_bin_is_a_figure_too(bin_: int) -> None:
    assert "<svg" in draw_histogram([Bars(np.eye(BINS)[bin_], 0)])
