"""What every benchmark does alike: time a call, run a side in a process of its own, print a table and one JSON line."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2  # of every process that computes; sides that are compared never run at the same time


def best(call: Callable[[], object], *, repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls: what disturbs a call only ever makes it slower."""
    return min(seconds(call) for _ in range(repeats))


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def middle(values: Iterable[float]) -> float:
    """The median; of nothing, NaN."""
    found = list(values)
    return median(found) if found else float("nan")


def in_fresh_process(module: str, *words: str, timeout_s: float = 3600.0) -> dict[str, Any]:
    """Run `python -m module words` and return the JSON object of its last line of output.

    Raises:
        RuntimeError: it failed; what it wrote to stderr is inside.
    """
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return last_line(done.stdout)


def environment() -> dict[str, str]:
    """Of a side's process: two threads that sleep when they wait, no network."""
    return os.environ | {
        "OMP_NUM_THREADS": str(THREADS),
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def last_line(output: str) -> dict[str, Any]:
    """The JSON object at the end of a benchmark's output."""
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they must be: the first to the left, the others to the right. Floats get three digits."""
    lines = [[_cell(value) for value in row] for row in (head, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    )


def emit(benchmark: str, result: Mapping[str, Any]) -> None:
    """The last line: all that was measured, where and with what."""
    print(json.dumps({"benchmark": benchmark, **result, "machine": machine()}), flush=True)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
