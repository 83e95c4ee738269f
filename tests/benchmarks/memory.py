"""Peak memory of the learner over its weights and gradients, naive (the model as transformers has it) against packed,
each in a fresh process; and packed with gradient checkpointing.
"""

from __future__ import annotations

import argparse
import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.types import ScoredGroup
from tests.benchmarks.cells import Cell, shared
from tests.benchmarks.report import THREADS, emit, in_fresh_process, table

WARM = Cell(2, 100, 2)  # before: the first pass brings in 230 MiB of libraries, however small it is
CELLS = (Cell(8, 312, 4), Cell(8, 312, 64))
WAYS = ("naive", "packed", "checkpointed")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--alone", nargs=2, metavar=("WAY", "C"), help="one measurement, in this process")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.alone:
        way, length = arguments.alone
        emit("memory", {"over_mib": measure(way, Cell(8, 312, int(length)), arguments.dtype)})
        return 0
    found = {str(cell): {way: _alone(way, cell, arguments.dtype) for way in WAYS} for cell in CELLS}
    ratios = {cell: one["naive"] / one["packed"] for cell, one in found.items()}
    rows = [[cell, *(one[way] for way in WAYS), ratios[cell]] for cell, one in found.items()]
    print(table(["MiB over weights and gradients", *WAYS, "naive / packed"], rows))
    emit("memory", {"dtype": arguments.dtype, "peak_ratio": ratios, "mib": found})
    return 0


def measure(way: str, cell: Cell, dtype: str) -> float:
    """MiB of memory that forward and backward take at their peak, beyond what model and gradients hold."""
    import torch

    from tests.benchmarks import cells, learner

    torch.set_num_threads(THREADS)
    model, scored = learner.load(dtype, attention="sdpa" if way == "naive" else "auto"), cells.group(cell)
    if way == "checkpointed":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # touched: it counts as held
    learn = cells.naive if way == "naive" else _packed
    learn(model, cells.group(WARM))
    ctypes.CDLL(None).malloc_trim(0)  # what that left free would be taken again unseen
    held = forget_peak()
    learn(model, scored)
    return peak() - held


def _packed(model: Any, scored: ScoredGroup) -> None:
    shared(model, [scored])


def forget_peak() -> float:
    """Let the process's peak be what it holds now; returns that, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """MiB the process has held at most since `forget_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _alone(way: str, cell: Cell, dtype: str) -> float:
    done = in_fresh_process("tests.benchmarks.memory", f"--dtype={dtype}", "--alone", way, str(cell.c))
    return float(done["over_mib"])


if __name__ == "__main__":
    raise SystemExit(main())
