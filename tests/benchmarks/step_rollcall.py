"""Rollcall's side of `step`: whole steps of `learner.main.train` on W1, timed from one step's record to the next."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from tests.benchmarks import w1
from tests.benchmarks.report import emit, middle

STAGES = ("generate", "reward", "learn", "publish", "idle")
WARM = 2  # steps before the timed ones: the first load of weights and the first forward allocate


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--steps", type=int, default=3, help="timed steps")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    emit("step_rollcall", measure(dtype=arguments.dtype, steps=arguments.steps))
    return 0


def measure(*, dtype: str, steps: int) -> dict[str, Any]:
    """Medians over the timed steps: `step` and `stages` in seconds; and the largest log-prob gap."""
    from learner.main import train

    config = w1.config(steps=WARM + steps, model={"dtype": dtype})
    records, ends = [], []
    with w1.running(w1.read_inputs(config)) as run:
        written = run.tracker.write

        def write(record: Any) -> None:
            ends.append(time.perf_counter())
            records.append(record)
            written(record)

        run.tracker.write = write  # type: ignore[method-assign]
        train(run)
    timed = records[WARM:]
    lengths = {record.completion_length for record in records}
    if lengths != {w1.C}:
        raise RuntimeError(f"W1 has completions of {w1.C} tokens, not of {lengths}")
    return {
        "step": middle(after - before for before, after in zip(ends[WARM - 1 :], ends[WARM:], strict=False)),
        "stages": {stage: middle(record.seconds[stage] for record in timed) for stage in STAGES},
        "max_logprob_gap": max(record.logprob_gap_max for record in records),
    }


if __name__ == "__main__":
    raise SystemExit(main())
