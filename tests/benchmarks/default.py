"""How long the embedded default takes to read 90 % of the held-out digits, from the first step's start; another
checkout of Rollcall can be run the same way, one after the other, for a ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.report import ROOT, emit, table

GOAL = 0.90
COLUMNS = ("seconds_to_90", "steps_to_90", "train_seconds", "startup_seconds", "accuracy", "max_logprob_gap")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--checkout", type=Path, help="another checkout, run first, with this interpreter")
    made.add_argument("--seeds", type=int, nargs="+", default=[1])
    made.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the run, as learner.main takes them")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    places = {"before": arguments.checkout.resolve()} if arguments.checkout else {}
    runs = {
        f"{name} seed={seed}": run(place, [f"seed={seed}", *arguments.settings])
        for seed in arguments.seeds
        for name, place in (places | {"now": ROOT}).items()
    }
    now = [runs[f"now seed={seed}"] for seed in arguments.seeds]
    means = {key: _mean([one[key] for one in now]) for key in (*COLUMNS, "publish_share")}
    result: dict[str, Any] = {**means, "runs": runs}
    if arguments.checkout:
        before = _mean([runs[f"before seed={seed}"]["seconds_to_90"] for seed in arguments.seeds])
        after = means["seconds_to_90"]
        result["ratio_vs_checkout"] = after / before if after and before else None
    print(table(["run", *COLUMNS], [[name, *(one[key] for key in COLUMNS)] for name, one in runs.items()]))
    emit("default", result)
    return 0


def run(checkout: Path, words: Sequence[str], *, module: str = "learner.main") -> dict[str, Any]:
    """Run the default there, evaluating every 10 steps, and read its folder."""
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", module, "evaluation.every=10", f"run_dir={folder}", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return read(folder)


def read(folder: Path) -> dict[str, Any]:
    """What a finished run's files say. Seconds are of steps alone: evaluating so often is this benchmark's own."""
    steps, evaluations = _rows(folder / "metrics.jsonl"), _rows(folder / "evaluations.jsonl")
    summary = json.loads((folder / "summary.json").read_text())
    reached = next((row["step"] for row in evaluations if row["accuracy"] >= GOAL), None)
    spent = [row["step_seconds"] for row in steps]
    return {
        "seconds_to_90": None if reached is None else sum(spent[:reached]),
        "steps_to_90": reached,
        "completions_to_90": None if reached is None else round(sum(map(_completions, steps[:reached]))),
        "train_seconds": sum(spent),
        "startup_seconds": summary["startup_seconds"],
        "accuracy": summary["accuracy_after"],
        "curve": {row["step"]: row["accuracy"] for row in evaluations},
        "max_logprob_gap": summary["max_logprob_gap"],
        "publish_share": fmean(row["share/publish"] for row in steps),
    }


def _completions(step: dict[str, Any]) -> float:
    return float(step["completions_per_second"] * step["step_seconds"])


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


if __name__ == "__main__":
    raise SystemExit(main())
