"""Answers of engines as JSON, for a checkpoint or a journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from common.types import Completion, FailedGroup, Group, VersionSpan

Outcome = Group | FailedGroup


def write_outcome(outcome: Outcome) -> dict[str, Any]:
    """Return an answer as plain values, of which JSON makes the same again."""
    return asdict(outcome)


def read_outcome(row: Mapping[str, Any]) -> Outcome:
    """Return the answer that `write_outcome` was given. Raises what plain Python raises for any other row."""
    if "reason" in row:
        return FailedGroup(**row)
    return Group(**{**row, "completions": tuple(_read_completion(one) for one in row["completions"])})


def _read_completion(row: Mapping[str, Any]) -> Completion:
    spans = tuple(VersionSpan(*span) for span in row.get("spans", ()))  # none in checkpoints of before
    return Completion(
        **{**row, "token_ids": tuple(row["token_ids"]), "logprobs": tuple(row["logprobs"]), "spans": spans}
    )
