"""When the driver saves a checkpoint, and its own state in it. `checkpoint_store` makes it whole or absent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config.foreign_text import parse_json
from common.config.schema import Config, config_hash, incompatible_keys
from common.errors import CheckpointError, raise_as
from common.storage.output import Place, WriteReport, open_output, read_bytes
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.manifest import DRIVER

_STATE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverState:
    """What the driver must remember, as JSON. Ranks save their own state, and every draw follows from seed and step."""

    step: int  # optimizer steps done
    config: Config
    stream: Mapping[str, Any]  # a StreamState: where the training data stands
    counts: Mapping[str, int]  # groups dispatched, trained, dropped
    control: Mapping[str, Any]  # of each part of `learner.driver.control`: what it must remember


def write_state(place: Place, state: DriverState) -> WriteReport:
    """Write `state.json` to the place of an unfinished checkpoint. Raises OSError."""
    row = {
        "step": state.step,
        "config_hash": config_hash(state.config),
        "config": state.config.model_dump(mode="json"),
        "stream": dict(state.stream),
        "counts": dict(state.counts),
        "control": dict(state.control),
    }
    # A part a line, each without blanks: indented, the solve rates of many rows would be twice as long and slow.
    lines = [f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in row.items()]
    output = open_output(place)
    with output.open(_STATE) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
    return WriteReport(by=DRIVER, files=tuple(output.files))


def read_state(place: Place) -> DriverState:
    """Read `state.json` of a checkpoint.

    Raises:
        CheckpointError: it is missing, or of a version of Rollcall with other fields or configuration keys.
    """
    with raise_as(
        CheckpointError,
        f"the driver's state in checkpoint {place} cannot be used",
        remedy="resume with the version that wrote it (environment.json of its run has the git sha)",
    ):
        row = parse_json(read_bytes(place, _STATE))
        del row["config_hash"]  # for readers of the file; it follows from the configuration
        return DriverState(**{**row, "config": Config.model_validate(row["config"])})


def check_compatible(old: Config, new: Config) -> None:
    """Refuse to go on with another experiment than the checkpoint's. Its rows may lie elsewhere now.

    Raises:
        CheckpointError: `got` lists each key with its old and new value.
    """
    changed = incompatible_keys(old, new)
    changed.pop("data.path", None)  # the rows themselves are compared, where they have been read
    if changed:
        raise CheckpointError(
            "the checkpoint was written under another configuration",
            got="; ".join(f"{key}: {before!r} then, {after!r} now" for key, (before, after) in changed.items()),
            remedy="go back to the values it was written under, or start a new run with another run_dir",
        )


class Checkpointer:
    """Saves every N steps, and whenever the score (`checkpoint.best_by`) is the best so far.

    A full disk does not stop training: the failed save is counted and tried again after 1, 2, 4, ... steps.
    """

    def __init__(
        self, store: CheckpointStore, *, every: int, estimate: Callable[[], int], on_event: Callable[..., None]
    ) -> None:
        """
        Args:
            every: steps between checkpoints; 0 never saves.
            estimate: returns the bytes of a checkpoint, for a first one to find a disk that is too full.
        """
        self.store, self.failures = store, 0
        self.newest: int | None = None  # step of the checkpoint that this start wrote last, or went on from
        self._every, self._on_event, self._estimate = every, on_event, estimate
        self._in_a_row = 0
        self._retry_at: int | None = None

    def maybe_save(
        self,
        step: int,
        *,
        save: Callable[[Place], tuple[DriverState, Sequence[WriteReport]]],
        due: bool = False,
        score: float | None = None,
    ) -> bool:
        """Save after `step` optimizer steps if it is time. Return whether a checkpoint was written.

        Args:
            save: makes the ranks write to the place it is given; returns the driver's state and their reports.
            due: save at this step, whatever `every` says.
            score: of these weights, if they were evaluated.
        """
        better = score is not None and score > self.store.best_score()
        retry = self._retry_at is not None and step >= self._retry_at
        if not self._every or not (due or better or retry or step % self._every == 0):
            return False
        started = time.monotonic()
        try:
            with self.store.write_checkpoint(step, score=score, estimate=self._estimate()) as draft:
                state, draft.reports = save(draft.place)
                draft.own = write_state(draft.place, state)
        except CheckpointError as error:
            self._record_failure(step, error)
            return False
        self._in_a_row, self._retry_at, self.newest = 0, None, step
        self._on_event("checkpoint", step=step, seconds=round(time.monotonic() - started, 3))
        return True

    def _record_failure(self, step: int, error: CheckpointError) -> None:
        self.failures += 1
        self._retry_at = step + 2**self._in_a_row
        self._in_a_row += 1
        self._on_event("checkpoint_failed", step=step, why=f"{error.what}: {error.got}", retry_at=self._retry_at)
