"""All that can be refused before a cluster is touched: the one door of a run and of its dry run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.config.schema import Config
from common.data.stream import StreamState, check_rows
from common.errors import CheckpointError
from learner.driver.control.journal import Journal
from learner.driver.preflight.replay import open_replay
from learner.driver.preflight.run_inputs import RunInputs, run_preflight
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.resume import ResumePoint, describe_start, find_resume_point, open_checkpoints
from learner.storage.run_folder import RunFolder, refuse_inside_run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What a run starts from: everything checked, and its folder locked."""

    inputs: RunInputs
    folder: RunFolder
    store: CheckpointStore
    point: ResumePoint | None  # None: the run begins at step 0
    replay: Journal | None = None  # of the run that this one repeats


@contextmanager
def check_start(config: Config, *, say: Callable[[str], None], dry: bool = False) -> Iterator[RunStart]:
    """Lock the run folder, check everything and find the checkpoint to go on from; unlock the folder at the end.

    A folder in which no run begins is removed again.

    Args:
        dry: nothing will run here; see `run_preflight`.

    Raises:
        RollcallError: naming what cannot be used and how to mend it.
    """
    with closing(RunFolder.open(config, now=datetime.now().astimezone())) as folder:
        if not dry:
            say(f"run folder: {folder.address}")
        if folder.bucket is None and not folder.holds_checkpoint():
            refuse_inside_run(folder.path)
        inputs = run_preflight(config, say=say, dry=dry)
        store = open_checkpoints(inputs.config, folder)
        point = find_resume_point(inputs.config, folder, store)
        if config.resume:
            say(describe_start(point))
        if point:
            _check_data(point, inputs, say)
        if folder.bucket is None:
            warn_of_room(inputs.config, Path(inputs.model.path), folder.path, say=say)
        replay = open_replay(inputs.config, inputs.data.train, say=say)
        yield RunStart(inputs=inputs, folder=folder, store=store, point=point, replay=replay)


def _check_data(point: ResumePoint, inputs: RunInputs, say: Callable[[str], None]) -> None:
    """Refuse to go on with other training rows than the checkpoint's. Rows to evaluate on may change.

    Raises:
        DataError: naming what the rows differ in.
        CheckpointError: they lie elsewhere, and the checkpoint cannot tell whether they are the same.
    """
    try:
        state = StreamState(**point.state.stream)
    except TypeError as error:
        raise CheckpointError(
            f"the checkpoint {point.place} does not say where its data stands",
            got=error,
            remedy="resume with the version that wrote it (environment.json of its run has the git sha)",
        ) from error
    before = point.state.config.data.path
    check_rows(state, inputs.data.train)
    if state.digests is not None:
        return
    if before != inputs.config.data.path:
        raise CheckpointError(
            "the checkpoint cannot tell whether these are the rows it was trained on",
            got=f"data.path: {before!r} then, {inputs.config.data.path!r} now; it holds no digest of the rows",
            remedy="go back to the old data.path, or start a new run",
        )
    say("warning: the checkpoint holds no digest of its rows: only their number was compared")


def warn_of_room(config: Config, model: Path, folder: Path, *, say: Callable[[str], None]) -> None:
    """Say where checkpoints and export of a model in a folder of this host will hardly fit beside the run folder.

    A checkpoint holds the trained parameters, their masters in float32 and two moments of Adam. A run whose disk is
    full goes on without checkpoints.
    """
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors")) if model.is_dir() else 0
    itemsize = {"float32": 4, "bfloat16": 2}[config.model.dtype]
    stage = config.learner.zero_stage
    each = (0 if stage == 3 else itemsize) + (4 if stage else 0) + 8
    kept = config.checkpoint.keep + 1 if config.checkpoint.every and not config.lora.rank else 0
    needed = weights * each // itemsize * kept + (weights if config.checkpoint.export in (True, "merged") else 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        say(
            f"warning: checkpoints and export take about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free at "
            f"{folder}: make room, or lower checkpoint.keep"
        )
