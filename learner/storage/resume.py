"""Where a run goes on: from a sound checkpoint, written under a configuration that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import is_zipfile

from common.config.schema import Config
from common.errors import CheckpointError, RunFolderError, raise_as
from common.models.own_code import explain_unreadable
from common.storage.output import Place, WriteReport
from learner.storage.checkpoint import DriverState, check_compatible, read_state
from learner.storage.checkpoint_bucket import CheckpointBucket
from learner.storage.checkpoint_folder import CheckpointFolder
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.manifest import Manifest
from learner.storage.run_folder import RunFolder

CLASSES_OF_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A sound checkpoint, and what the driver said in it."""

    place: Place  # of its files
    reports: Sequence[WriteReport]  # who wrote which
    state: DriverState


def open_checkpoints(config: Config, folder: RunFolder) -> CheckpointStore:
    """Return the store of a run's checkpoints, without what a killed run left unfinished.

    Raises:
        RunFolderError: the bucket does not answer, or something else lies in their place.
    """
    keep, best_by = config.checkpoint.keep, config.checkpoint.best_by
    if folder.bucket is None:
        place = folder.path / "checkpoints"
        with raise_as(RunFolderError, f"{place} cannot be used", remedy="move it away, or give another run_dir"):
            return CheckpointFolder(place, keep=keep, best_by=best_by)
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
        CheckpointError: the one named is not sound, none is, or it was written under another configuration; or one of
            its files names code.
        RunFolderError: the bucket does not answer.
    """
    if config.resume is None:
        return None
    try:
        manifest = store.find_newest() if folder.step is None else store.verify(folder.step)
        if manifest is None:
            _require_auto(config)
            return None
        place = store.files_of(manifest)
        state = read_state(place)
    except OSError as error:
        raise _make_unreadable_error(error) from error
    check_compatible(state.config, config)
    if isinstance(place, Path):  # files in a bucket are looked at by the ranks that load them
        _refuse_code(place, manifest)
    return ResumePoint(place=place, reports=manifest.reports, state=state)


def find_newest_point(store: CheckpointStore) -> ResumePoint | None:
    """Return the newest sound checkpoint of a running run; None before the first.

    Raises:
        CheckpointError: there are some, and not one is sound.
        RunFolderError: the bucket does not answer.
    """
    try:
        manifest = store.find_newest()
        if manifest is None:
            return None
        place = store.files_of(manifest)
        return ResumePoint(place=place, reports=manifest.reports, state=read_state(place))
    except OSError as error:
        raise _make_unreadable_error(error) from error


def _require_auto(config: Config) -> None:
    """Let `resume=auto` start at step 0. Raises CheckpointError for a run that was named and has no checkpoint."""
    if config.resume != "auto":
        raise CheckpointError(
            "the run that resume names has no checkpoint to go on from",
            got=f"resume = {config.resume}",
            remedy="name another run, or start anew: leave resume out, and give another run_dir",
        )


def _refuse_code(folder: Path, manifest: Manifest) -> None:
    """Look at what torch's files name beside tensors and plain values, without loading them. Raises CheckpointError.

    Whoever loads them refuses it too, but only once the ranks are up.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint

    for file in (file.name for file in manifest.files if file.name.endswith(".pt")):
        if not is_zipfile(folder / file):  # damaged, or of another format: the ranks say so
            continue
        try:
            named = set(get_unsafe_globals_in_checkpoint(str(folder / file))) - CLASSES_OF_DEEPSPEED
        except Exception as error:  # noqa: BLE001  # the file may be anybody's
            named = {explain_unreadable(error)}
        if named:
            raise CheckpointError(
                f"{folder / file} of the checkpoint cannot be used",
                got=f"beside tensors and plain values it holds {', '.join(sorted(named))}",
                remedy="resume from a checkpoint that a run of yours wrote; code in one is never run",
            )


def _make_unreadable_error(error: OSError) -> RunFolderError:
    return RunFolderError(
        "the checkpoints cannot be read", got=error, remedy="try again once the storage of run_dir answers"
    )
