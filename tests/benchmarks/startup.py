"""How long the embedded default takes to start, phase by phase, and until a killed engine serves again. Another
checkout of Rollcall can be run in turn, for ratios. The seconds of CPU are those of all processes of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.report import ROOT, emit, middle, table

UP = "everything up"  # the last phase
PATIENCE_S = 300.0  # for a start, and for a restart
Processes = dict[int, tuple[int, float]]  # process id -> its parent's, its CPU seconds


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--checkout", type=Path, help="another checkout, run before each run of this one")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the runs, as learner.main takes them")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    places = {"before": arguments.checkout.resolve()} if arguments.checkout else {}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (*places, "now")}
    for _ in range(arguments.repeats):
        for name, place in (places | {"now": ROOT}).items():
            runs[name].append(measure(place, arguments.settings))

    medians = {name: {key: middle(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    rows = [(f"{name} {turn}", *run.values()) for name, found in runs.items() for turn, run in enumerate(found, 1)]
    print(table(["run", *medians["now"]], rows))
    ratios = {f"{key}_ratio": value / medians["before"][key] for key, value in medians["now"].items() if places}
    emit("startup", {**medians["now"], **ratios, "runs": runs})
    return 0


def measure(checkout: Path, words: Sequence[str]) -> dict[str, float]:
    """Start the default there, kill its engine, and return the seconds of each phase, of CPU and of the restart."""
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "learner.main", f"run_dir={folder}", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
        with subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL) as run:
            phases = wait_for(folder, "phase", lambda phase: phase["what"] == UP)
            cpu = cpu_seconds(run.pid, read_processes())
            restart = kill_engine(folder)
            run.send_signal(signal.SIGINT)
        return {phase["what"]: phase["seconds"] for phase in phases} | {"CPU until then": cpu, "restart": restart}


def kill_engine(folder: Path) -> float:
    """Kill the engine of a run and return the seconds until another serves."""
    (up,) = wait_for(folder, "engine_up", lambda event: True)
    killed = time.monotonic()
    os.kill(up["pid"], signal.SIGKILL)
    wait_for(folder, "engine_joined", lambda event: True)
    return time.monotonic() - killed


def wait_for(folder: Path, kind: str, wanted: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
    """Return all events of a kind in the run's folder, once a wanted one is there. Raises TimeoutError."""
    file, deadline = folder / "events.jsonl", time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        lines = file.read_text().splitlines() if file.exists() else []
        found = [event for event in map(json.loads, lines) if event["kind"] == kind]
        if any(map(wanted, found)):
            return found
        time.sleep(0.02)
    raise TimeoutError(f"no such {kind} in {file} after {PATIENCE_S:g} s")


def read_processes() -> Processes:
    """Read every process of this machine."""
    found: Processes = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[int(path.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def cpu_seconds(root: int, processes: Processes) -> float:
    """Add up the CPU seconds of `root` and of all processes below it."""
    below = [pid for pid, (parent, _) in processes.items() if parent == root]
    return processes[root][1] + sum(cpu_seconds(pid, processes) for pid in below)


if __name__ == "__main__":
    raise SystemExit(main())
