"""What becomes of the default where engines sample from another policy than the learner's: in bfloat16 while it learns
in float32, and from the weights of the step before. Three ends, each over all seeds: matched, left alone, corrected.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.default import run
from tests.benchmarks.report import ROOT, emit, table

CORRECTIONS = ("none", "truncate", "mask")
COLUMNS = ("accuracy", "steps_to_90", "max_logprob_gap")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    made.add_argument("--mismatch", nargs="+", default=["bfloat16", "late", "bfloat16+late"], help="of the engines")
    made.add_argument("--keep", type=Path, help="JSON file of runs that are done, and of those to come")
    made.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of every run, as learner.main takes them")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    wanted = [("none", "none"), *((mismatch, how) for mismatch in arguments.mismatch for how in CORRECTIONS)]
    keep: Path | None = arguments.keep
    done: dict[str, dict[str, Any]] = json.loads(keep.read_text()) if keep and keep.exists() else {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for mismatch, how in wanted:
            name = f"engines: {mismatch}, correction: {how}"
            if f"{name}, seed {seed}" not in done:
                os.environ["MISMATCH"] = mismatch
                words = [f"seed={seed}", f"objective.correction={how}", *arguments.settings]
                done[f"{name}, seed {seed}"] = run(ROOT, words, module="tests.benchmarks.mismatch_run")
            rows.setdefault(name, []).append(done[f"{name}, seed {seed}"])
            if keep:
                keep.write_text(json.dumps(done, indent=1))
    print(table(["run", *COLUMNS], [[name, *summarise(own)] for name, own in rows.items()]))
    emit("mismatch", {"seeds": arguments.seeds, "runs": done})
    return 0


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the mean of each column over the seeds, None where one has none."""
    columns = [[one[name] for one in runs] for name in COLUMNS]
    return [None if None in values else fmean(values) for values in columns]


if __name__ == "__main__":
    raise SystemExit(main())
