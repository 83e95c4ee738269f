"""Write run folders as runs of any length and method leave them, for reports. Free text goes through `say`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from learner.storage.files import append_whole
from tests.helpers.fake_run import record

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def made_run(
    folder: Path,
    *,
    steps: int = 40,
    seed: int = 1,
    lr: float = 5e-4,
    classes: tuple[str, ...] = CLASSES,
    say: Callable[[str], str] = str,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a finished run that learnt, evaluated on three sets, with samples and a fault.

    Args:
        settings: further sections and keys of the configuration. The samples follow its `method`.
    """
    folder.mkdir(parents=True)
    names = [say(name) for name in classes]
    config: dict[str, Any] = {"name": say("digits"), "seed": seed, "steps": steps, "run_dir": str(folder)}
    config |= {"model": {"path": say("embedded:tiny")}, "data": {"mode": "no_think"}, "learner": {"lr": lr}}
    config |= settings or {}
    method = config.get("method", "grpo")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    dump(folder / "environment.json", {"git_sha": say("0123456789abcdef"), "packages": {"torch": say("2.13")}})
    lines = [json.dumps(record(step, reward=reward(step, steps, seed)).row()) for step in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for step in (0, steps // 2, steps):
        for number, name in enumerate(("held-out", say("@base_test"), say("@new_test"))):
            add(folder, "evaluations.jsonl", evaluation(step, name, names, 0.2 + 0.6 * step / steps - 0.05 * number))
    (folder / "samples").mkdir()
    for step in range(0, steps, max(1, steps // 100)):
        for number in range(3):
            picture = f"samples/{step:06}-{number}.png"
            Image.new("RGB", (56, 56), (40 * number, step % 256, 90)).save(folder / picture)
            row = sample(step, number, picture, names, say)
            is_sampled = method == "grpo" or (number == 0 and config.get("exact", {}).get("sampled_share"))
            add(folder, "samples.jsonl", row if is_sampled else give_answers(row, method))
    for kind, fields in (
        ("start", {"first_step": 0}),
        ("weights_loaded", {"version": 0}),
        ("dropped", {"prompt": say("train/3"), "reason": say("longer than the limit")}),
        ("dropped", {"prompt": "train/4", "reason": "the same"}),
        (say("odd_kind"), {"what": say("nothing")}),
    ):
        add(folder, "events.jsonl", {"wall": 1.7e9, "monotonic": 3.0, "kind": kind, **fields})
    summary = {"outcome": "finished", "steps": steps, "wall_seconds": 93.0, "startup_seconds": 21.0}
    summary |= {"completions_per_second": 640.0, "max_logprob_gap": 3e-6, "config_hash": "4720b4e917a6"}
    dump(folder / "summary.json", summary)
    return folder


def reward(step: int, steps: int, seed: int) -> float:
    return 0.1 + 0.8 * (1 - math.exp(-3 * step / steps)) + 0.04 * math.sin(1.7 * step + seed)


def evaluation(step: int, name: str, classes: list[str], accuracy: float) -> dict[str, Any]:
    """Forty rows a class, of which the later classes are the worse."""
    right = [round(40 * max(0.0, min(1.0, accuracy + 0.1 - 0.2 * n / len(classes)))) for n in range(len(classes))]
    confusion = [
        [label, "" if n % 4 == 3 else classes[(n + 1) % len(classes)], 40 - right[n]]
        for n, label in enumerate(classes)
        if right[n] < 40
    ]
    share = sum(right) / (40 * len(classes))
    return {
        "step": step,
        "set": name,
        "rows": 40 * len(classes),
        "accuracy": share,
        "lenient": share + 0.01,
        "closed_set": None,
        "macro_f1": share - 0.01,
        "invalid_rate": 0.02,
        "out_of_list_rate": 0.01,
        "ece": None,
        "brier": None,
        "intervals": {"accuracy": [share - 0.04, share + 0.04]},
        "per_class": {label: [right[n], 40] for n, label in enumerate(classes)},
        "confusion": [[label, label, right[n]] for n, label in enumerate(classes)] + confusion,
        "pass_at": {"4": share + 0.1},
        "majority_at": {},
    }


def sample(step: int, number: int, picture: str, classes: list[str], say: Callable[[str], str]) -> dict[str, Any]:
    """Group 0 is all wrong, 1 is divided, 2 all right."""
    rewards = ([0.0] * 4, [1.0, 1.0, 0.0, 0.0], [1.0] * 4)[number]
    return {
        "step": step,
        "kept_for": ("worst", "first", "best")[number],
        "prompt_id": say(f"train/{number}"),
        "image": picture,
        "problem": f"{say('Which digit?')} Please choose one from list [ {', '.join(classes)}].",
        "candidates": classes,
        "label": classes[number],
        "origin": "sampled",
        "engine_id": "engine-0",
        "weights_version": step,
        "completions": [
            {"text": say(f"answer {n}"), "tokens": 2, "finish_reason": "stop", "reward": one, "advantage": one - 0.5}
            for n, one in enumerate(rewards)
        ],
        "logprobs": [-0.5] * 4,
    }


def give_answers(row: dict[str, Any], method: str) -> dict[str, Any]:
    """Turn a sampled row into one that the method wrote down: all candidates, or the label alone."""
    texts = row["candidates"] if method == "exact" else [row["label"]]
    answers = [
        {"text": text, "tokens": 2, "finish_reason": "stop", "reward": float(text == row["label"]), "advantage": None}
        for text in texts
    ]
    return row | {"origin": "given", "engine_id": None, "completions": answers, "logprobs": None}


def add(folder: Path, name: str, row: dict[str, Any]) -> None:
    append_whole(folder / name, json.dumps(row).encode() + b"\n")


def dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))
