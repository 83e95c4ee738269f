"""Back to the last checkpoint without an end of the run: engines stay up, and the steps after it are taken again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from common.errors import LearnerLostError
from learner.storage.resume import find_newest_point

if TYPE_CHECKING:
    from learner.driver.run import Run


def train_through_losses(train: Callable[[Run], None], run: Run) -> None:
    """Let `train` take all steps. Where the learner is lost as a whole, go back and let it go on.

    Raises LearnerLostError for one loss too many in a row.
    """
    lost = _find_loss(train, run)
    while lost:
        lost = _find_loss(rewind, run) or _find_loss(train, run)


def _find_loss(work: Callable[[Run], None], run: Run) -> LearnerLostError | None:
    """Do some work; return the loss that broke it off."""
    try:
        work(run)
    except LearnerLostError as error:
        if error.final:
            raise
        return error.with_traceback(None)  # what the step had begun ends with its frames
    return None


def rewind(run: Run) -> None:
    """Build the ranks anew, and go on from the newest checkpoint, or from the start of the run where there is none."""
    began = time.monotonic()
    run.forget_asked()
    run.learner.rebuild()
    point = find_newest_point(run.checkpoints.store) or run.origin
    assert point is not None, "a run that was opened knows its origin"
    run.return_to(point)
    run.tracker.rewind(run.version, run.ledger.dropped)
    run.learner.tell_rebuilt("checkpoint" if run.version else "start", began)
    run.publish(run.version)
