"""How long the linter and the builder take over many classes with two pictures each, every question with the
whole list. Another checkout of Rollcall can be run in turn, for ratios. The seconds are of whole processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.report import ROOT, emit, environment, table
from tests.helpers.makers import image_folder

COLUMNS = ("lint", "build", "lint of the set", "CPU")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--classes", type=int, default=10_000)
    made.add_argument("--checkout", type=Path, help="another checkout, run before this one")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    places = {"before": arguments.checkout.resolve()} if arguments.checkout else {}
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as scratch:
        photos = image_folder(Path(scratch) / "photos", {f"class {n:05}": 2 for n in range(arguments.classes)})
        found = {name: measure(place, photos, Path(scratch) / name) for name, place in (places | {"now": ROOT}).items()}
    print(table(["checkout", *COLUMNS], [(name, *one.values()) for name, one in found.items()]))
    ratios = {f"{key}_ratio": value / found["before"][key] for key, value in found["now"].items() if places}
    emit("classes", {"classes": arguments.classes, **found["now"], **ratios, "checkouts": found})
    return 0


def measure(checkout: Path, photos: str, out: Path) -> dict[str, float]:
    """Return the seconds of each command there, and the seconds of CPU of all."""
    before = os.times()
    took = [
        run(checkout, "common.data.lint", photos),
        run(checkout, "common.data.build", photos, "--shots", "all", "--candidates", "all", "--out", str(out)),
        run(checkout, "common.data.lint", f"{out}@test"),
    ]
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return dict(zip(COLUMNS, (*took, cpu), strict=True))


def run(checkout: Path, module: str, *words: str) -> float:
    """Run one command of a checkout and return its wall seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", module, *words]
    subprocess.run(
        command, cwd=checkout, env=environment() | {"PYTHONPATH": str(checkout)}, stdout=subprocess.DEVNULL, check=True
    )
    return time.monotonic() - started


if __name__ == "__main__":
    raise SystemExit(main())
