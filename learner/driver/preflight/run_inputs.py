"""Everything that can be refused before a cluster is touched, in one line: builds, data, labels, model, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.config.schema import Config
from common.data.stream import PromptStream
from learner.driver.preflight.builds import check_builds
from learner.driver.preflight.capacity import check_capacity, check_machine
from learner.driver.preflight.data import RunData, read_data, settle_steps
from learner.driver.preflight.evaluation import check_sets
from learner.driver.preflight.labels import RunLabels, check_labels
from learner.driver.preflight.learnable import warn_of_few_rows, warn_of_nothing_to_learn
from learner.driver.preflight.model import ModelFiles, check_model
from learner.driver.preflight.services import check_services
from learner.driver.preflight.sizes import check_picture_size
from learner.evaluation.sets import EvaluationSet, check_best_by
from rollout.rewards.loading import check_functions


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """What a configuration names, read and checked."""

    config: Config  # its length is in steps: `epochs` have been counted
    data: RunData
    labels: RunLabels
    model: ModelFiles
    sets: tuple[EvaluationSet, ...]  # the held-out rows first, if there are any

    def stream(self) -> PromptStream:
        """Make the stream of training examples, at its beginning. Raises DataError when one step takes more rows than
        there are."""
        return PromptStream(
            self.data.train,
            seed=self.config.seed,
            prompts_per_step=self.config.rollout.prompts_per_step,
            worded=self.labels.reshuffle,
        )


def run_preflight(config: Config, *, say: Callable[[str], None], dry: bool = False) -> RunInputs:
    """Read and check all that a run needs, the cheapest first.

    Args:
        dry: nothing will run here, so builds of torch and vLLM that do not fit are worth a warning alone.

    Raises:
        RollcallError: naming what cannot be used and how to mend it.
    """
    check_builds(config.cluster, say=say if dry else None)
    check_capacity(config, say=say if dry else None)
    check_machine(config, say=say)
    check_functions(config.reward)
    check_services(config.tracking)
    check_picture_size(config, say=say)
    data = read_data(config, say=say)
    config = settle_steps(config, rows=len(data.train), say=say)
    warn_of_nothing_to_learn(config, say=say)
    warn_of_few_rows(config, rows=len(data.train), say=say)
    labels = check_labels(config, data, say=say)
    model = check_model(config, data, labels, say=say)
    sets = check_sets(config, data.sets, model, say=say)
    check_best_by(config, sets)
    inputs = RunInputs(config=config, data=data, labels=labels, model=model, sets=sets)
    inputs.stream()  # refuses fewer rows than a step takes
    return inputs
