"""Rollcall's engines and vLLM as it is, for `rollout` and `publish`: two workloads, each in a fresh process a side."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from common.types import Prompt
from tests.benchmarks import w1
from tests.benchmarks.report import THREADS, in_fresh_process

if TYPE_CHECKING:
    from common.models.prompts import PromptEncoder
    from learner.driver.preflight.run_inputs import RunInputs

WORKLOADS = ("digits", "w1")


def options(about: str | None, sides: Sequence[str]) -> argparse.ArgumentParser:
    """The command line of a benchmark of two sides."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--alone", choices=sides, help="one side, in this process")
    return made


def side_alone(benchmark: str, side: str, name: str, repeats: int) -> dict[str, Any]:
    """What one side of a benchmark of this package finds in a process of its own."""
    words = ("--alone", side, "--workloads", name, f"--repeats={repeats}")
    return in_fresh_process(f"tests.benchmarks.{benchmark}", *words)


def workload(name: str) -> RunInputs:
    """What a run of it is given: the embedded default with 32 prompts x G = 16, or W1."""
    if name == "w1":
        return w1.read_inputs(w1.config())
    from common.config import cli
    from learner.driver.preflight.run_inputs import run_preflight

    sizes = ["rollout.cpus_per_engine=0.5", "learner.cpus_per_rank=0.5", f"cluster.threads={THREADS}"]
    words = [*sizes, "data.eval_split=null", "checkpoint.every=0", "checkpoint.export=false", "cluster.address=local"]
    return run_preflight(cli.parse(words).config, say=lambda line: None)


def batches(what: RunInputs, encoder: PromptEncoder) -> Iterator[list[Prompt]]:
    """Steps' worth of prompts, their pictures new as long as there are any."""
    size = what.config.rollout.prompts_per_step
    rows = itertools.cycle(range(len(what.data.train) // size * size))
    while True:
        yield [encoder.encode(what.data.train[row]) for row in itertools.islice(rows, size)]


def bare(what: RunInputs) -> Any:
    """A `vllm.LLM` in this process, with the settings Rollcall's engine gives it."""
    from rollout.build import build_engine
    from rollout.spec import engine_spec

    spec = engine_spec(what.config, model_path=what.model.path, banned=what.model.banned)
    os.environ.update(spec.environment())
    return build_engine(spec, model_path=what.model.path)  # the same settings is the point
