"""What is written into the folder of a run whose driver can no longer write."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json, parse_yaml
from common.config.schema import Config, config_hash
from common.storage.bucket import BucketFolder, is_url
from learner.storage.files import append_jsonl, read_jsonl, replace_text
from learner.tracking.records import Cause, History


def record_loss(folder: Path, cause: Cause, *, wall_seconds: float) -> None:
    """Write the event `end` and `summary.json` of a run that is lost. Raises what reading and writing files may."""
    _append_event(folder, "end", outcome="lost", **asdict(cause))
    history = History()
    for row in read_jsonl(folder / "metrics.jsonl"):
        history.add_step(row)
    for row in read_jsonl(folder / "evaluations.jsonl"):
        history.add_evaluation(row["step"], row)
    startups = [row for row in read_jsonl(folder / "events.jsonl") if row.get("what") == "everything up"]
    summary = history.summarize(
        outcome="lost",
        cause=cause,
        stopped_early=None,
        steps=len(history.rewards),
        wall_seconds=wall_seconds,
        startup_seconds=startups[-1]["seconds"] if startups else 0.0,
        weights_version=len(history.rewards),
        checkpoint_failures=0,
        log_failures=0,
        warnings=(),
        config_hash=config_hash(Config.model_validate(parse_yaml((folder / "config.yaml").read_text()))),
        git_sha=parse_json((folder / "environment.json").read_text())["git_sha"],
    )
    replace_text(folder / "summary.json", json.dumps(asdict(summary), indent=2) + "\n")


def upload_record(folder: Path, place: str) -> None:
    """Copy what was written to the bucket of the run, if it is in one. Raises OSError."""
    if is_url(place):
        bucket = BucketFolder.parse(place)
        for name in ("events.jsonl", "summary.json"):
            bucket.write(name, (folder / name).read_bytes())


def record_retry(folder: Path, *, attempt: int, of: int, why: str) -> None:
    """Write the event that a driver is started again. Raises OSError."""
    _append_event(folder, "retry", attempt=attempt, of=of, why=why)


def _append_event(folder: Path, kind: str, **fields: Any) -> None:
    append_jsonl(folder / "events.jsonl", {"wall": time.time(), "monotonic": time.monotonic(), "kind": kind, **fields})
