"""Where a run goes on: from a sound checkpoint, written under a configuration that fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config.schema import Config
from learner.storage.checkpoint import DriverState, check_compatible, read_state
from learner.storage.checkpoint_store import CheckpointStore, verify
from learner.storage.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A sound checkpoint, and what the driver said in it."""

    folder: Path
    state: DriverState


def describe_start(point: ResumePoint | None) -> str:
    """Say where a start that was to resume goes on."""
    if point is None:
        return "no checkpoint found, starting at step 0"
    return f"going on from step {point.state.step} ({point.folder})"


def find_resume_point(config: Config, folder: RunFolder, store: CheckpointStore) -> ResumePoint | None:
    """Find the checkpoint that this start goes on from; None where it is not to resume, or there is none.

    Raises:
        CheckpointError: the one named is not sound, none is, or it was written under another configuration.
    """
    if config.resume is None:
        return None
    if folder.checkpoint is not None:
        verify(folder.checkpoint)
    path = folder.checkpoint or store.find_newest()
    if path is None:
        return None
    state = read_state(path)
    check_compatible(state.config, config)
    return ResumePoint(folder=path, state=state)
