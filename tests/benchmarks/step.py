"""One whole step of W1 in Rollcall (Ray, vLLM, DeepSpeed, as in a run) and in TRL's GRPOTrainer: same weights,
pictures, prompts, G, tokens, beta and rate. And how close the step is to what its arithmetic needs.

Rollcall runs before TRL and again after it, and the two are averaged: a machine that grows faster or slower meanwhile
favours neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tests.benchmarks import flops, w1
from tests.benchmarks.report import THREADS, emit, in_fresh_process, table

STAGES = ("generate", "learn", "publish")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both sides")
    made.add_argument("--steps", type=int, default=3, help="timed steps of each side")
    made.add_argument("--no-trl", action="store_true", help="Rollcall alone")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    options = (f"--dtype={arguments.dtype}", f"--steps={arguments.steps}")
    ours = in_fresh_process("tests.benchmarks.step_rollcall", *options)
    bound = bounds(arguments.dtype)
    theirs = None if arguments.no_trl else in_fresh_process("tests.benchmarks.step_trl", *options)
    if theirs is not None:
        ours = averaged(ours, in_fresh_process("tests.benchmarks.step_rollcall", *options))
    rows = [_row("rollcall", ours), ["needed", bound["step"], bound["generate"], bound["learn"], "", ""]]
    completions = w1.P * w1.G
    result: dict[str, Any] = {
        "dtype": arguments.dtype,
        "completions_per_s": completions / ours["step"],
        "rollcall": {"step": ours["step"], "steps": ours.get("steps"), **ours["stages"]},
        "bound": bound,
        "bound_fraction": bound["step"] / ours["step"],
        "learn_bound_fraction": bound["learn"] / ours["stages"]["learn"],
        "max_logprob_gap": ours["max_logprob_gap"],
    }
    if theirs is not None:
        rows.append(_row("trl", theirs))
        result |= {
            "trl": {"step": theirs["step"], **theirs["stages"]},
            "ratio_vs_trl": theirs["step"] / ours["step"],
            "learn_ratio_vs_trl": theirs["stages"]["learn"] / ours["stages"]["learn"],
            "gradient_rel_err": theirs["gradient_rel_err"],
        }
    print(table(["seconds", "step", "generate", "learn", "publish", "rest"], rows))
    emit("step", result)
    return 0


def averaged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Of two runs of one side."""
    return {
        "step": (first["step"] + second["step"]) / 2,
        "steps": [first["step"], second["step"]],
        "stages": {stage: (took + second["stages"][stage]) / 2 for stage, took in first["stages"].items()},
        "max_logprob_gap": max(first["max_logprob_gap"], second["max_logprob_gap"]),
    }


def bounds(dtype: str) -> dict[str, float]:
    """Seconds that the arithmetic of a step takes at the measured rate, and that rate in GFLOP/s."""
    import torch
    from transformers import AutoConfig

    torch.set_num_threads(THREADS)
    model = AutoConfig.from_pretrained(w1.home() / "model", trust_remote_code=False)
    side = 2 * w1.side(w1.SIZE)  # patches
    forward = w1.P * flops.group_forward(model, prompt=w1.PROMPT, grids=[(1, side, side)], completions=[w1.C] * w1.G)
    rate = flops.matmul_rate(model, getattr(torch, dtype))
    return {
        "step": flops.step_needs(forward) / rate,
        "generate": forward / rate,
        "learn": flops.step_needs(forward, rollout=False) / rate,
        "gflops": rate / 1e9,
    }


def _row(name: str, side: dict[str, Any]) -> list[Any]:
    stages = side["stages"]
    parts = [stages.get(stage, "") for stage in STAGES]
    return [name, side["step"], *parts, side["step"] - sum(stages.get(stage, 0.0) for stage in STAGES)]


if __name__ == "__main__":
    raise SystemExit(main())
