"""One model to evaluate, and the sets it is asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.config.schema import Config
from common.data.lint import lint_sources
from common.data.sources import load_held_out
from common.errors import ConfigError
from common.labels.lint import settle
from learner.driver.preflight import ModelFiles, admit_sets, check_lengths, read_model
from learner.evaluation.sets import EvaluationSet, read_sets


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTarget:
    """A model that was read, and the sets it is evaluated on."""

    name: str
    config: Config
    model: ModelFiles
    sets: tuple[EvaluationSet, ...]

    @property
    def scores(self) -> bool:
        """Whether candidates are to be scored."""
        return any(one.closed_set for one in self.sets)


def read_target(config: Config, name: str, *, held_out: bool, say: Callable[[str], None]) -> EvaluationTarget:
    """Read the model but for its weights, and every row of every set.

    Args:
        held_out: the configuration's held-out rows are a set too.

    Raises:
        RollcallError: naming what cannot be used and how to mend it.
    """
    sets = read_sets(config, load_held_out(config.data) if held_out else None)
    if not sets:
        raise ConfigError(
            "there is nothing to evaluate on", got="no --data, and data.eval_split = null", remedy="pass --data PLACE"
        )
    model = read_model(config)
    for one in sets:
        settle(one.name, lint_sources([one.source], mode=config.data.mode), say=say)
        check_lengths(config, [one.source], model.encoder.count, say)
    return EvaluationTarget(name=name, config=config, model=model, sets=tuple(admit_sets(config, sets, model, say=say)))
