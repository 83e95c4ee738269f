"""What each objective needs to read 90 % of the held-out digits: the presets of the GRPO family at two updates a step
(at one, those that differ by their ratio alone are the same), the default, its filters, and the exact family.

Steps and completions are the same on any machine; seconds are of steps alone, and compare on an idle one. `--keep` adds
to the runs of a file, so that a long table can be made in parts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common.config.objective import PRESETS
from tests.benchmarks.default import GOAL, run
from tests.benchmarks.report import ROOT, emit, table

TWICE = ["steps=100", "objective.updates=2"]
FILTERS = {
    "dead groups dropped": ["objective.dead_groups=drop"],
    "dead groups refilled": ["signal.max_prompts=3"],
    "solved rows passed over": ["signal.skip_solved=2"],
    "adaptive G": ["signal.max_group_size=64"],
    "refilled, adaptive G": ["signal.max_prompts=3", "signal.max_group_size=64"],
}
EXACT = ["--config", "deploy/recipes/digits-exact.yaml"]
RUNS: dict[str, list[str]] = {
    "default": [],
    "grpo x 1": ["steps=100"],
    **{f"{preset} x 2": [f"objective.preset={preset}", *TWICE] for preset in PRESETS if preset != "quick"},
    **{f"grpo x 2, {name}": [*TWICE, *words] for name, words in FILTERS.items()},
    **{f"exact {kind}": [*EXACT, f"exact.advantage={kind}"] for kind in ("raw", "arcsine", "log")},
}
COLUMNS = ("steps_to_90", "completions_to_90", "seconds_to_90", "train_seconds", "accuracy")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    made.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    made.add_argument("--keep", type=Path, help="JSON file of runs that are done, and of those to come")
    made.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of every run, as learner.main takes them")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    keep: Path | None = arguments.keep
    done: dict[str, dict[str, Any]] = json.loads(keep.read_text()) if keep and keep.exists() else {}
    for seed in arguments.seeds:
        for name in arguments.runs:
            if f"{name} seed={seed}" in done:
                continue
            done[f"{name} seed={seed}"] = run(ROOT, [*RUNS[name], f"seed={seed}", *arguments.settings])
            if keep:
                keep.write_text(json.dumps(done, indent=1))
    rows = {name: summarise([done[f"{name} seed={seed}"] for seed in arguments.seeds]) for name in arguments.runs}
    print(table(["objective", *COLUMNS], [[name, *row.values()] for name, row in rows.items()]))
    emit("objectives", {"goal": GOAL, "seeds": arguments.seeds, "objectives": rows, "runs": done})
    return 0


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of each column over the seeds, and None where one of them did not reach the goal."""
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        values = [one[name] for one in runs]
        columns[name] = None if None in values else fmean(values)
    return columns


if __name__ == "__main__":
    raise SystemExit(main())
