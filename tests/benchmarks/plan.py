"""What `--plan` says a learner rank takes, against what it took: W1's model, one group of P = 312, G = 8, C = 8, three
optimizer steps of the real rank, each case in a fresh process.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config.schema import Config
from tests.benchmarks.report import emit, in_fresh_process, table

CASES: Mapping[str, dict[str, Any]] = {
    "ZeRO-0": {"learner": {"zero_stage": 0}},
    "ZeRO-1": {"learner": {"zero_stage": 1}},
    "ZeRO-2": {"learner": {"zero_stage": 2}},
    "ZeRO-3": {"learner": {"zero_stage": 3}},
    "ZeRO-2, no reference, checkpointing": {
        "learner": {"zero_stage": 2, "beta": 0.0},
        "model": {"gradient_checkpointing": True},
    },
    "ZeRO-1, bfloat16": {"learner": {"zero_stage": 1}, "model": {"dtype": "bfloat16"}},
    "ZeRO-1, LoRA": {"learner": {"zero_stage": 1}, "lora": {"rank": 16}},
}
PROMPT, GROUP, LENGTH = 312, 8, 8
# Blocks of this many bytes and more are given back to the system when they are freed: memory held is memory counted.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", choices=CASES, help="one case, in this process")
    parser.add_argument("--only", choices=CASES, nargs="*", default=list(CASES))
    arguments = parser.parse_args(argv)
    if arguments.alone:
        if not os.environ.keys() >= MALLOC.keys():
            os.environ |= MALLOC
            os.execv(sys.executable, [sys.executable, "-m", "tests.benchmarks.plan", "--alone", arguments.alone])
        config = settings(CASES[arguments.alone])
        emit("plan", {"measured": measured(config), "predicted": predicted(config)})
        return 0
    found = {case: in_fresh_process("tests.benchmarks.plan", "--alone", case) for case in arguments.only}
    ratio = {}
    for case, one in found.items():
        parts = [(part, one["predicted"][part], took) for part, took in one["measured"].items() if took > 1]
        ratio[case] = {part: said / took for part, said, took in parts}
        rows = [[part, said, took, said / took] for part, said, took in parts]
        print(table([f"{case} (MiB)", "predicted", "measured", "ratio"], rows), end="\n\n")
    sides = {side: {case: one[side] for case, one in found.items()} for side in ("predicted", "measured")}
    emit("plan", {**sides, "ratio": ratio})
    return 0


def settings(changes: Mapping[str, Any]) -> Config:
    """W1 with one group of the case's shape a pack."""
    from tests.benchmarks import w1

    merged = w1.config().model_dump(mode="json")
    wanted = {
        "data": {"max_prompt_tokens": PROMPT},
        "rollout": {"group_size": GROUP, "max_completion_tokens": LENGTH},
        "learner": {"tokens_per_pack": 1, "gpus_per_rank": 0},
        "cluster": {"threads": 1},
    }
    for update in (wanted, changes):
        for section, values in update.items():
            merged[section] |= values
    return Config.model_validate(merged)


def predicted(config: Config) -> dict[str, float]:
    """MiB of each part, as `measured` names them."""
    from learner.memory.plan import plan

    share = plan(config, config.model).rank
    held = {part.name: part.nbytes / 2**20 for part in share.parts}
    passing = {part.name: part.nbytes / 2**20 for part in share.passing}
    gradients = held["gradients"] if config.learner.zero_stage < 3 else 0.0  # stage 3 never lets go of them
    return {
        "held between steps": sum(held.values()) - gradients,
        "gradients": gradients,
        "forward, backward": max(passing["forward, backward"], passing["or reducing"]),
        "updating": passing["or updating"] + gradients,
        "the whole process": share.nbytes / 2**20,
    }


def measured(config: Config) -> dict[str, float]:
    """MiB that a real rank took, over three steps of two packs."""
    from learner.objective.records import Coefficients
    from learner.trainer import rank as ranks
    from learner.trainer import zero
    from learner.trainer.loss_terms import split_by_loss
    from learner.trainer.rank_pack import RankPack
    from tests.benchmarks.cells import Cell, group

    ranks._own_address = lambda: "127.0.0.1"  # noqa: SLF001  # there is no Ray
    rank = ranks.LearnerRank(
        config, rank=0, model_path=config.model.path, banned=(), steps=config.steps, tower_runs=not config.towers_frozen
    )
    scored = group(Cell(GROUP, PROMPT, LENGTH))
    rank.start(rank.open_store())
    ((term, _),) = split_by_loss([scored, scored], config.loss, config.objective)
    pack = RankPack(groups=(featured(rank, scored),), real=True, term=term)
    update = zero.optimizer_step
    seen: dict[str, float] = {}

    def watched(engine: Any, *, lr: float, clip: float, correction: float = 1.0) -> float:
        gc.collect()
        seen["peak"], seen["ready"] = peak(), resident()
        forget_peak()
        norm = update(engine, lr=lr, clip=clip, correction=correction)
        seen["update"] = peak()
        return norm

    zero.optimizer_step = watched
    highest = 0.0
    for _ in range(3):
        gc.collect()
        held = resident()
        forget_peak()
        rank.begin_step(Coefficients.of(config), at=0)
        rank.learn([pack, pack], last=True)
        rank.finish_step(1.0)
        highest = max(highest, seen["peak"], seen["update"])
    gradients = max(0.0, seen["ready"] - held)
    return {
        "held between steps": held,
        "gradients": gradients,
        "forward, backward": seen["peak"] - held - gradients,
        "updating": seen["update"] - held,
        "the whole process": highest,
    }


def featured(rank: Any, group: Any) -> Any:
    """The group with features in place of pixels where its tower is frozen."""
    if rank._tower_runs:  # noqa: SLF001
        return group
    from learner.model.vision_features import compute_features

    (images,) = compute_features(rank._engine.module, [group.prompt.images])  # noqa: SLF001
    return replace(group, prompt=replace(group.prompt, images=images))


def resident() -> float:
    """MiB of this process that are in memory now."""
    return _status("VmRSS")


def peak() -> float:
    """MiB at most since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Count the peak from now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    sys.exit(main())
