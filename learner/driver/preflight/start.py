"""All that can be refused before a cluster is touched: the one door of a run and of its dry run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime

from common.config.schema import Config
from learner.driver.preflight.run_inputs import RunInputs, run_preflight
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.resume import ResumePoint, describe_start, find_resume_point, open_checkpoints
from learner.storage.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What a run starts from: everything checked, and its folder locked."""

    inputs: RunInputs
    folder: RunFolder
    store: CheckpointStore
    point: ResumePoint | None  # None: the run begins at step 0


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
        inputs = run_preflight(config, say=say, dry=dry)
        store = open_checkpoints(inputs.config, folder)
        point = find_resume_point(inputs.config, folder, store)
        if config.resume:
            say(describe_start(point))
        yield RunStart(inputs=inputs, folder=folder, store=store, point=point)
