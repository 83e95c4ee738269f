"""The learner alone, in one process without Ray and DeepSpeed: a group with its prompt computed once against G whole
rows of the model as transformers has it, forward and backward, gradients equal; packs of mixed lengths against equal
ones; both against the arithmetic.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from typing import Any

from tests.benchmarks import flops, w1
from tests.benchmarks.cells import Cell, gradient, group, naive, needed, shared
from tests.benchmarks.report import THREADS, best, emit, seconds, table

TARGETS = (Cell(8, 312, 4), Cell(16, 312, 8), Cell(8, 312, 64))
GRID = (
    Cell(2, 312, 4),
    Cell(8, 100, 2),
    Cell(8, 100, 64),
    Cell(8, 312, 16),
    Cell(8, 312, 512),
    Cell(8, 1000, 4),
    Cell(8, 1000, 64),
    Cell(16, 100, 256),
    Cell(32, 312, 2),
    Cell(32, 312, 64),
    Cell(32, 1000, 8),
)
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--quick", action="store_true", help="the three cells with a target, and the mixed pack")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    import torch

    torch.set_num_threads(THREADS)
    dtype = getattr(torch, arguments.dtype)
    model, plain = load(arguments.dtype), load(arguments.dtype, attention="sdpa")
    rate = flops.matmul_rate(model.config, dtype)
    cells = TARGETS if arguments.quick else (*TARGETS, *GRID)
    found = {
        str(cell): measure(model, plain, cell, rate, repeats=arguments.repeats, dtype=arguments.dtype) for cell in cells
    }
    mixed = mixed_v_equal(model, repeats=arguments.repeats)
    columns = ("naive_s", "shared_s", "speedup", "bound_fraction", "gradient_rel_err")
    print(table(["cell", *columns], [[cell, *(one[column] for column in columns)] for cell, one in found.items()]))
    print(f"mixed lengths v equal ones: {mixed:.2f} of the time for the same arithmetic")
    emit(
        "learner",
        {
            "dtype": arguments.dtype,
            "speedup": {cell: one["speedup"] for cell, one in found.items()},
            "bound_fraction": {cell: one["bound_fraction"] for cell, one in found.items()},
            "mixed_v_equal": mixed,
            "gflops": rate / 1e9,
            "cells": found,
        },
    )
    return 0


def load(dtype: str, *, attention: str = "auto") -> Any:
    """W1's model, in training mode; with "sdpa" its tower and attention are transformers' own."""
    from learner.model.load import load_model

    config = w1.config(model={"dtype": dtype}, learner={"attention": attention})
    return load_model(str(w1.home() / "model"), config).train()


def measure(model: Any, plain: Any, cell: Cell, rate: float, *, repeats: int, dtype: str) -> dict[str, float]:
    """Seconds of both ways, their ratio, the share of the shared one that arithmetic explains.

    Raises AssertionError when the gradients differ.
    """
    scored = group(cell)
    slow = seconds(lambda: naive(plain, scored))
    wanted = gradient(plain)
    shared(model, [scored])
    found = gradient(model)
    error = float((found - wanted).norm() / wanted.norm())
    assert error <= TOLERANCE[dtype], f"{cell}: gradients differ by {error:.1e}"
    fast = best(lambda: shared(model, [scored]), repeats=repeats)
    if slow < 20:
        slow = min(slow, best(lambda: naive(plain, scored), repeats=repeats - 1))
    for one in (model, plain):
        one.zero_grad(set_to_none=True)
    gc.collect()
    return {
        "naive_s": slow,
        "shared_s": fast,
        "speedup": slow / fast,
        "bound_fraction": needed(model.config, [scored]) / rate / fast,
        "gradient_rel_err": error,
    }


def mixed_v_equal(model: Any, *, repeats: int) -> float:
    """Seconds a FLOP in a pack of prompts and completions of mixed lengths, over that in a pack of equal ones."""
    equal = [group(Cell(8, 264, 8), number=number) for number in range(3)]
    mixed = [
        group(Cell(8, length, 8), number=number, lengths=[2, 3, 4, 6, 8, 10, 13, 18])
        for number, length in enumerate((100, 312, 380))
    ]
    costs = []
    for groups in (mixed, equal):
        shared(model, groups)
        took = best(lambda groups=groups: shared(model, groups), repeats=repeats)  # type: ignore[misc]
        costs.append(took / needed(model.config, groups))
    model.zero_grad(set_to_none=True)
    return costs[0] / costs[1]


if __name__ == "__main__":
    raise SystemExit(main())
