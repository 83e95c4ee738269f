"""A step of the learner in which 3 groups of 10 are dead, all read against live ones alone: without a KL, where the
weights are the same, and with one, where that of dead groups is dropped. Both sides are up together and take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.benchmarks import w1
from tests.benchmarks.engines import WORKLOADS, batches, workload
from tests.benchmarks.report import emit, seconds, table

if TYPE_CHECKING:
    from common.config.schema import Config
    from common.types import ScoredGroup
    from learner.driver.preflight.run_inputs import RunInputs
    from learner.trainer.group import LearnerGroup

DEAD = 0.3
SIDES = {"no KL": ("keep", "auto", 0.0), "KL": ("auto", "drop", 0.04)}  # read all, read live ones; weight of the KL


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["digits"])
    made.add_argument("--prompts", type=int, default=30)
    made.add_argument("--tokens", type=int, default=2, help="of a completion")
    made.add_argument("--repeats", type=int, default=10)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    rows, ratios = [], {}
    with cluster():
        for name in arguments.workloads:
            what = workload(name)
            groups = make_groups(what, arguments.prompts, arguments.tokens)
            for case, (read_all, read_live, beta) in SIDES.items():
                configs = [configure(what.config, how, beta) for how in (read_all, read_live)]
                every, live = measure(what, configs, groups, arguments.repeats)
                ratios[f"{name}, {case}"] = live / every
                rows.append([f"{name}, {case}", every, live, live / every])
    print(table(["workload", "all_s", "live_s", "ratio"], rows))
    emit("dead_groups", {"dead": DEAD, "ratio": ratios, "prompts": arguments.prompts, "tokens": arguments.tokens})
    return 0


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray of its own, whose CPUs are numbers."""
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def configure(config: Config, how: str, beta: float) -> Config:
    """Those of the workload, with the log-probs of engines, which are made up, as they are."""
    objective = config.objective.model_copy(update={"dead_groups": how, "correction": "none"})
    learner = config.learner.model_copy(update={"beta": beta, "cpus_per_rank": 0.5})
    return config.model_copy(update={"objective": objective, "learner": learner})


def make_groups(what: RunInputs, prompts: int, tokens: int) -> list[ScoredGroup]:
    """Groups of random completions, the dead ones spread evenly."""
    import torch

    from common.types import Completion, Group, ScoredGroup

    encoder = w1.local_encoder(what)
    asked = [prompt for _, batch in zip(range(prompts), batches(what, encoder), strict=False) for prompt in batch]
    draw, size = torch.Generator().manual_seed(1), what.config.rollout.group_size
    allowed = [one for one in range(20, 400) if one not in what.model.banned]
    groups = []
    for number in range(prompts):
        prompt = asked[number % len(asked)]
        prompt = replace(prompt, example=replace(prompt.example, id=f"bench/{number}"))
        completions = tuple(
            Completion(
                token_ids=tuple(allowed[at] for at in torch.randint(50, (tokens,), generator=draw).tolist()),
                logprobs=(-3.0,) * tokens,
                text="",
                finish_reason="stop",
            )
            for _ in range(size)
        )
        origin: dict[str, Any] = {"seed": 0, "origin": "sampled", "engine_id": "none", "weights_version": 0}
        group = Group(prompt_id=prompt.id, completions=completions, **origin)
        dead = int((number + 1) * DEAD) > int(number * DEAD)
        rewards = tuple(float(dead or one % 2) for one in range(size))
        groups.append(ScoredGroup(prompt=prompt, group=group, rewards_by_name={"odd": rewards}, rewards=rewards))
    return groups


def measure(
    what: RunInputs, configs: Sequence[Config], groups: Sequence[ScoredGroup], repeats: int
) -> tuple[float, float]:
    """Seconds of the fastest step of both sides, after one that warms up."""
    from learner.trainer.group import LearnerGroup

    with ExitStack() as stack:
        sides: list[LearnerGroup] = []
        for config in configs:
            side = LearnerGroup(config, model_path=what.model.path, banned=what.model.banned, steps=1000)
            stack.callback(side.close)
            side.ready(600)
            sides.append(side)
        left_out = [side.step(groups, at=0).left_out for side in sides]
        assert left_out[0] == 0 and left_out[1] == round(DEAD * len(groups)), left_out
        taken: list[list[float]] = [[], []]
        for at in range(1, repeats + 1):
            for side, times in zip(sides, taken, strict=True):
                times.append(seconds(lambda side=side, at=at: side.step(groups, at=at)))  # type: ignore[misc]
        return min(taken[0]), min(taken[1])


if __name__ == "__main__":
    raise SystemExit(main())
