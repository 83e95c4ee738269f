"""Where a run goes on: from a sound checkpoint, written under a configuration that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.config.schema import Config
from common.errors import RunFolderError
from common.storage.output import Place, WriteReport
from learner.storage.checkpoint import DriverState, check_compatible, read_state
from learner.storage.checkpoint_bucket import CheckpointBucket
from learner.storage.checkpoint_folder import CheckpointFolder
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A sound checkpoint, and what the driver said in it."""

    place: Place  # of its files
    reports: Sequence[WriteReport]  # who wrote which
    state: DriverState


def open_checkpoints(config: Config, folder: RunFolder) -> CheckpointStore:
    """Return the store of a run's checkpoints, without what a killed run left unfinished.

    Raises:
        RunFolderError: the bucket does not answer.
    """
    keep, best_by = config.checkpoint.keep, config.checkpoint.best_by
    if folder.bucket is None:
        return CheckpointFolder(folder.path / "checkpoints", keep=keep, best_by=best_by)
    try:
        root = folder.bucket.place / "checkpoints"
        return CheckpointBucket(root, keep=keep, best_by=best_by, before_commit=folder.bucket.before_commit)
    except OSError as error:
        raise _make_unreadable_error(error) from error


def describe_start(point: ResumePoint | None) -> str:
    """Say where a start that was to resume goes on."""
    if point is None:
        return "no checkpoint found, starting at step 0"
    return f"going on from step {point.state.step} ({point.place})"


def find_resume_point(config: Config, folder: RunFolder, store: CheckpointStore) -> ResumePoint | None:
    """Find the checkpoint that this start goes on from; None where it is not to resume, or there is none.

    Raises:
        CheckpointError: the one named is not sound, none is, or it was written under another configuration.
        RunFolderError: the bucket does not answer.
    """
    if config.resume is None:
        return None
    try:
        manifest = store.find_newest() if folder.step is None else store.verify(folder.step)
        if manifest is None:
            return None
        place = store.files_of(manifest)
        state = read_state(place)
    except OSError as error:
        raise _make_unreadable_error(error) from error
    check_compatible(state.config, config)
    return ResumePoint(place=place, reports=manifest.reports, state=state)


def _make_unreadable_error(error: OSError) -> RunFolderError:
    return RunFolderError(
        "the checkpoints cannot be read", got=error, remedy="try again once the storage of run_dir answers"
    )
