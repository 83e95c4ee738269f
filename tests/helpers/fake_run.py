"""A run without a model, for tests and for the eye: `python -m tests.helpers.fake_run [steps] [seconds a step]`."""

from __future__ import annotations

import math
import sys
import time
from datetime import datetime

import numpy as np

from common.config.schema import Config
from common.types import GAP_EDGES, Completion, Example, Group, Prompt, ScoredGroup
from learner.storage.run_folder import RunFolder
from learner.tracking.console import open_console
from learner.tracking.records import StepRecord
from learner.tracking.tracker import Tracker


def count_gaps(median: float = 4e-7) -> tuple[int, ...]:
    """900 gaps around a median, a bin of half a decade on either side for every e of them less."""
    middle = 2 * math.log10(median / GAP_EDGES[0])
    shares = [math.exp(-((place - 0.5 - middle) ** 2) / 4) for place in range(len(GAP_EDGES) + 1)]
    return tuple(round(900 * share / sum(shares)) for share in shares)


def record(step: int, **changes: object) -> StepRecord:
    """A plausible record of a run that learns."""
    learnt = 1 - math.exp(-step / 40)
    seconds = {"generate": 0.31, "reward": 0.02, "learn": 0.27 + 0.03 * math.sin(step), "publish": 0.05, "idle": 0.02}
    values: dict[str, object] = {
        "step": step,
        "epoch": step / 45,
        "completion_length": 2.0 + 0.4 * math.cos(step),
        "rewards": {"accuracy": 0.25 + 0.7 * learnt},
        "reward": 0.25 + 0.7 * learnt + 0.05 * math.sin(step * 1.7),
        "reward_std": 0.4 * (1 - learnt),
        "kl": 0.03 * learnt,
        "loss": 0.001 * math.sin(step),
        "entropy": 1.2 * (1 - learnt),
        "listed_mass": 0.97,
        "zero_std_share": 0.1 + 0.8 * learnt,
        "thinking": {},
        "grad_norm": 0.8,
        "lr": 5e-4 * (1 - step / 250),
        "logprob_gap_mean": 4e-7,
        "logprob_gap_max": 3.1e-6,
        "engine_kl": 0.0,
        "effective_share": 1.0,
        "corrected_share": 0.0,
        "lag": {"0/tokens": 900, "0/gap_mean": 4e-7, "0/gap_max": 3.1e-6, "0/engine_kl": 0.0}
        | {"0/effective_share": 1.0, "0/corrected_share": 0.0},
        "gap_counts": {"0": count_gaps()},
        "left_out_share": 0.0,
        "clip_share": 0.0,
        "truncated_share": 0.01,
        "weights_version": step + 1,
        "seconds": seconds,
        "learner_seconds": seconds["learn"],
        "data_seconds": 0.005,
        "step_seconds": sum(seconds.values()),
        "completions_per_second": 512 / sum(seconds.values()),
        "solve_rates": {"rows": 16 * (step + 1), "hard": 0.5 * (1 - learnt), "easy": 0.6 * learnt},
        "asked_share": 1.0,
        "dropped": 0,
        "groups_dispatched": 32 * (step + 1),
        "groups_trained": 32 * (step + 1),
        "groups_dropped": 0,
        "groups_filtered": 0,
        "checkpoint_failures": 0,
        "engine_restarts": 0,
    }
    return StepRecord(**{**values, **changes})  # type: ignore[arg-type]


def scored(texts: tuple[str, ...] = ("seven", "seven", "nine", "one"), label: str = "seven") -> ScoredGroup:
    """A scored group over a 200 x 300 image."""
    image = np.arange(200 * 300 * 3, dtype=np.uint64).reshape(200, 300, 3).astype(np.uint8)
    example = Example(id="train/17", problem="Which digit?", image=image, label=label, columns={})
    prompt = Prompt(example=example, text_ids=(1,), token_ids=(1,), images=None)
    completions = tuple(
        Completion(token_ids=(5, 2), logprobs=(-0.1, -0.2), text=text, finish_reason="stop") for text in texts
    )
    rewards = tuple(float(text == label) for text in texts)
    group = Group(
        prompt_id="train/17", completions=completions, seed=1, origin="sampled", engine_id="engine-0", weights_version=3
    )
    return ScoredGroup(prompt=prompt, group=group, rewards_by_name={"accuracy": rewards}, rewards=rewards)


def main(steps: int = 60, seconds: float = 0.2) -> None:
    """Show a run of `steps` steps."""
    config = Config(steps=steps, name="digits")
    folder = RunFolder.open(config, now=datetime.now().astimezone())
    folder.begin(config)
    tracker = Tracker(folder, config, open_console(config))
    started = time.monotonic()
    for what in ("data and model ready", "learner ranks up", "engines up"):
        time.sleep(seconds)
        tracker.phase(what, seconds * 40)
    for step in range(steps):
        if step % 20 == 0:
            tracker.evaluation(step, {"accuracy": 0.2 + 0.7 * step / steps, "invalid_rate": 0.01, "per_class": {}})
            tracker.event("checkpoint", step=step, megabytes=9.3, seconds=0.12)
        if step % 10 == 0:
            texts = ("seven",) * (8 + step // 10) + ("nine",) * 4 + ("\x1b[31mone [red]",) * 2
            tracker.samples(step, [scored(texts)], 1)
        if step == steps // 2:
            tracker.event("engine_lost", engine="engine-1", why="ActorDiedError: the worker died\nunexpectedly " * 3)
        time.sleep(seconds)
        tracker.write(record(step, engine_restarts=int(step > steps // 2)))
    tracker.evaluation(steps, {"accuracy": 0.95, "invalid_rate": 0.0, "per_class": {}})
    tracker.close(
        tracker.summary(
            outcome="finished",
            steps=steps,
            wall_seconds=time.monotonic() - started,
            startup_seconds=seconds * 3,
            weights_version=steps,
        )
    )
    folder.close()


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, float), sys.argv[1:], strict=False)))
