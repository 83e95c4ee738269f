"""A run folder with clean books, made by hand: two starts, a lag of 1, a group failed, one filtered, a step left out.

Four prompts a step, six steps. The first start was killed after step 3, the second went on from step 3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash
import yaml

P, STEPS, LAG = 4, 6, 1
HOST = "elsewhere"


def seal(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the checksum of what it holds, as compact JSON in its order."""
    content = json.dumps({key: value for key, value in row.items() if key != "seal"}, separators=(",", ":"))
    return {**row, "seal": xxhash.xxh3_64(content.encode()).hexdigest()}


def make_groups(number: int, version: int, fates: list[str]) -> dict[str, list[Any]]:
    """Make the columns of the groups of the batch of this number."""
    sampled = [not fate.startswith("failed") for fate in fates]
    size = len(fates)

    def column(name: str) -> list[Any]:
        return [f"{name}{number}{at}" if sampled[at] else None for at in range(size)]

    return {
        "prompt": [f"train/{4 * number + at}" for at in range(size)],
        "epoch": [0] * size,
        "fate": fates,
        "origin": ["sampled" if one else None for one in sampled],
        "engine": [f"engine-{at % 2}" if one else None for at, one in enumerate(sampled)],
        "version": [version if one else None for one in sampled],
        "size": [8 if one else 0 for one in sampled],
        "tokens": column("t"),
        "logprobs": column("l"),
        "rewards": column("r"),
    }


def make_books() -> list[dict[str, Any]]:
    """Make the rows. Batch 3 is left out at step 3, so batch b > 3 is that of step b - 1."""
    rows: list[dict[str, Any]] = []
    trained = dropped = 0
    for number in range(STEPS + 1):
        skipped, step = number == 3, number - (number > 3)
        fates = ["skipped" if skipped else "trained"] * P
        if number == 1:
            fates[2] = "failed: too long"
        if number == 2:
            fates[0] = "filtered"
        trained += fates.count("trained")
        dropped += P - fates.count("trained")
        version = max(0, step - LAG)
        pending = [P] if number < STEPS else []
        first = number in (0, 4)
        newest = [step, step + 1] if first else [step + 1]
        if skipped:
            newest = []
        loads = [[f"engine-{at}", one, f"w{one}"] for one in newest for at in range(2)]
        if number == 4:  # the start that went on: batch 4 was sampled before
            loads = [*loads, ["engine-2", 3, "w3"]]
        rows.append(
            {
                "format": 1,
                "step": step,
                "skipped": skipped,
                "attempt": int(number > 3),
                "monotonic": 100.0 + 10 * number if number < 4 else 7.0 + number,
                "dispatched": P * (number + 1) + sum(pending),
                "trained": trained,
                "dropped": dropped,
                "pending": pending,
                "published": [[one, f"w{one}"] for one in newest],
                "loads": loads,
                "groups": make_groups(number, version, fates),
            }
        )
    return [seal(row) for row in rows]


def make_events() -> list[dict[str, Any]]:
    """Make the events of both starts."""

    def event(monotonic: float, kind: str, **fields: Any) -> dict[str, Any]:
        return {"wall": 1.8e9 + monotonic, "monotonic": monotonic, "kind": kind, **fields}

    start = {"config_hash": "c", "pid": 4_000_000, "host": HOST, "longest_s": 60.0, "bucket_mb": 256}
    return [
        event(90.0, "start", first_step=0, **start),
        event(95.0, "engine_up", engine="engine-0", pid=4_000_001),
        event(131.0, "checkpoint", step=3),
        event(5.0, "start", first_step=3, **start),
        event(15.0, "end", outcome="finished"),
    ]


def make_metrics(books: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make what `metrics.jsonl` says of the same steps, as far as an auditor reads it."""
    names = ("dispatched", "trained", "dropped")
    steps = [row for row in books if not row["skipped"]]
    return [{"step": row["step"]} | {f"groups_{name}": row[name] for name in names} for row in steps]


class MadeRun:
    """The files of the run, which a test may change before they are written."""

    def __init__(self) -> None:
        self.books, self.events = make_books(), make_events()
        self.metrics = make_metrics(self.books)
        self.summary: dict[str, Any] | None = {"outcome": "finished", "steps": STEPS, "stopped_early": None}
        self.config = {"steps": STEPS, "rollout": {"max_lag": LAG, "prompts_per_step": P}}

    def write(self, folder: Path, *, reseal: bool = True) -> Path:
        """Write the run folder."""
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(self.config))
        books = [seal(row) for row in self.books] if reseal else self.books
        for name, rows in (("books", books), ("events", self.events), ("metrics", self.metrics)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if self.summary is not None:
            (folder / "summary.json").write_text(json.dumps(self.summary))
        return folder
