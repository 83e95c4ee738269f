"""Entry point: `python -m learner.evaluate --model M [--data [NAME=]PATH[@SPLIT]] ... [--config recipe.yaml] [key=value]`

Several models and several sets make a matrix. A model is a run folder (its export, read with the run's configuration),
a Hugging Face folder or hub id, or `embedded:tiny`; the untrained model is the zero-shot baseline. Nothing is trained:
engines serve the model's own weights, and a learner that only scores is there where candidates are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from common.errors import RollcallError
from learner.main import FAILED, REFUSED, stoppable

if TYPE_CHECKING:
    from learner.door import ReadModel
    from learner.invocation import Evaluation
    from learner.judging import Judge
    from learner.sets import EvaluationSet


def evaluate(asked: Evaluation) -> None:
    """Every set by every model, one model after the other."""
    from common.cluster import connected
    from learner.evaluation_folder import EvaluationFolder

    candidates = [admit(one) for one in asked.models]  # all of it is read and checked before anything starts
    with closing(EvaluationFolder.open(asked, now=datetime.now().astimezone())) as folder:
        with connected(candidates[0].config.cluster):
            for one in candidates:
                with judge(one) as judging:
                    folder.add(one, judging.judged(one.sets))
        folder.finish()
