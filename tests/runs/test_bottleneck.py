"""Real runs of which one part is slow: the advisor names that one, in the summary, on the console and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import jobs
from tests.helpers.slow_part import PART, SLOW_REWARD, SLOWED

pytestmark = pytest.mark.engine
SHORT = (
    *("steps=5", "data.eval_split=null", "tracking.samples_every=0", "checkpoint.every=0", "checkpoint.export=false"),
    # All of the two CPUs that a machine has at least, so that no second engine or rank has room on the smallest.
    *("rollout.cpus_per_engine=1", "learner.cpus_per_rank=1"),
)
KNOBS = {  # one of these settings is turned
    "engine": ("rollout.engines=2", "rollout.max_lag=1"),
    "reward": ("reward.workers=2",),
    "learner": ("learner.ranks=2", "learner.tokens_per_pack=4096", "rollout.max_lag=1"),
    "driver": ("rollout.prompts_per_step=16", "rollout.max_lag=1"),
    "data": ("data.cache_mb=1024",),
}


@pytest.mark.parametrize("part", sorted(SLOWED))
def test_the_slow_part_is_named(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PART, part)
    words = [*SHORT, *([SLOW_REWARD] if part == "reward" else [])]
    run_dir = tmp_path / "run"
    process = jobs.start(run_dir, *words, warm=True, module="tests.helpers.slow_part")
    assert jobs.finish(process, run_dir) == 0, jobs.console(run_dir)

    found = json.loads((run_dir / "summary.json").read_text())["bottleneck"]
    assert found["part"] == part, [found, *jobs.rows(run_dir, "metrics.jsonl")]
    assert found["advice"].endswith(tuple(f". Try {setting}" for setting in KNOBS[part]))
    told = f"{found['what']}. {found['advice']}"
    assert f"\n  bottleneck    {told}\n" in jobs.console(run_dir)
    assert f"The bottleneck is {told}." in (run_dir / "report.html").read_text()
