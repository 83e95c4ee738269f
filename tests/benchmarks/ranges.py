"""Steps of the embedded default learned whole, and range by range while engines sample. Each side is a run of its own;
all are up together and take turns step by step, so that whatever else the machine does disturbs them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.report import ROOT, emit, middle, table

SIDES = ("learner.ranges=1", "learner.ranges=2", "learner.ranges=4", "learner.ranges=8")
STAGES = ("generate", "reward", "learn", "publish", "idle")
WARM = 4  # steps before the timed ones


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument(
        "--sides", nargs="+", default=SIDES, metavar="SETTINGS", help="of each run; the first is the base"
    )
    made.add_argument("--steps", type=int, default=40, help="timed steps of each side")
    made.add_argument("--pipes", nargs=2, type=int, help=argparse.SUPPRESS)  # this process is a side
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.pipes:
        return run_side(arguments.sides, *arguments.pipes)
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as scratch, ExitStack() as stack:
        words = [f"steps={WARM + arguments.steps}", "evaluation.limit=8", "checkpoint.every=0"]
        sides = [
            stack.enter_context(start(Path(scratch) / f"{number}", [*words, *side.split()]))
            for number, side in enumerate(arguments.sides)
        ]
        turns = [[json.loads(next(side)) for side in sides] for _ in range(WARM + arguments.steps)][WARM:]
    rows = []
    for number, side in enumerate(arguments.sides):
        own = [turn[number] for turn in turns]
        steps = sorted(one["step"] for one in own)
        ratio = middle(turn[0]["step"] / turn[number]["step"] for turn in turns)
        quick = sorted(turn[0]["step"] for turn in turns)[len(turns) // 10] / steps[len(turns) // 10]
        stages = [middle(one[stage] for one in own) for stage in STAGES]
        rows.append([side, middle(steps), steps[len(turns) // 10], *stages, ratio, quick])
    print(table(["side", "step", "quick_step", *STAGES, "times_faster", "times_faster_quick"], rows))
    emit("ranges", {"times_faster": {row[0]: row[-2] for row in rows}, "quick": {row[0]: row[-1] for row in rows}})
    return 0


@contextmanager
def start(folder: Path, words: Sequence[str]) -> Iterator[Iterator[str]]:
    """Start a side; yield what gives it a turn and returns its seconds, as a line of JSON."""
    go, to_side = os.pipe()
    from_side, done = os.pipe()
    command = [sys.executable, "-m", "tests.benchmarks.ranges", "--pipes", str(go), str(done), "--sides", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with Path(f"{folder}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"run_dir={folder}"],
            cwd=ROOT,
            env=environment,
            pass_fds=(go, done),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    os.close(go)
    os.close(done)
    with os.fdopen(to_side, "wb", buffering=0) as turns, os.fdopen(from_side) as answers:
        answers.readline()  # it is up

        def take() -> Iterator[str]:
            while True:
                turns.write(b"\n")
                line = answers.readline()
                if not line:
                    raise RuntimeError(Path(f"{folder}.log").read_text()[-4000:])
                yield line

        try:
            yield take()
        finally:
            process.terminate()
            process.wait(60)


def run_side(words: Sequence[str], go: int, done: int) -> int:
    """Train, and wait for a turn before every step."""
    from learner.driver.clock import StepClock
    from learner.driver.run import Run
    from learner.main import main as train

    evaluate, write, save = Run.evaluate, Run.write, Run.save
    with os.fdopen(go, "rb", buffering=0) as turns, os.fdopen(done, "w", buffering=1) as answers:

        def begin(run: Run) -> None:
            evaluate(run)
            if run.version == 0:
                answers.write("up\n")
                turns.readline()

        def answer(run: Run, step: int, batch: Any, result: Any, clock: StepClock) -> None:
            write(run, step, batch, result, clock)
            answers.write(json.dumps({"step": clock.elapsed, **clock.split(STAGES[:-1])}) + "\n")

        def wait(run: Run) -> None:
            save(run)
            turns.readline()

        Run.evaluate = begin  # type: ignore[assignment,method-assign]
        Run.write = answer  # type: ignore[assignment,method-assign]
        Run.save = wait  # type: ignore[assignment,method-assign]
        return train(list(words))


if __name__ == "__main__":
    raise SystemExit(main())
