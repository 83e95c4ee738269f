"""Fourth step: the sets that a model is evaluated on, each prompt of them measured. And, of `learner.evaluate`, all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.config.schema import Config
from common.data.content.copies import Part
from common.data.content.survey import survey
from common.data.lint import lint_sources
from common.data.sources import ExampleSource, load_held_out, say_notes
from common.errors import ConfigError
from common.labels.lint import settle
from learner.driver.preflight.builds import check_builds
from learner.driver.preflight.labels import check_lengths
from learner.driver.preflight.model import ModelFiles, read_model
from learner.driver.preflight.sizes import check_picture_size
from learner.evaluation.sets import EvaluationSet, make_set, read_sets


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTarget:
    """A model that was read, and the sets that `learner.evaluate` asks it about."""

    name: str
    config: Config
    model: ModelFiles
    sets: tuple[EvaluationSet, ...]

    @property
    def needs_learner(self) -> bool:
        """Whether candidates are to be scored, which the learner does."""
        return any(one.closed_set for one in self.sets)


def check_sets(
    config: Config, sources: Mapping[str, ExampleSource], model: ModelFiles, *, say: Callable[[str], None]
) -> tuple[EvaluationSet, ...]:
    """Measure the prompts of each set. Raises DataError for what the model cannot be asked."""
    for source in sources.values():
        model.encoder.check(source)
    return tuple(make_set(name, source, model.closed_set, config, say=say) for name, source in sources.items())


def read_target(config: Config, name: str, *, held_out: bool, say: Callable[[str], None]) -> EvaluationTarget:
    """Read the model but for its weights, and every row of every set.

    Args:
        held_out: the configuration's held-out rows are a set too.

    Raises:
        RollcallError: naming what cannot be used and how to mend it.
    """
    check_builds(config.cluster)
    check_picture_size(config, say=say)
    sources = read_sets(config, load_held_out(config.data) if held_out else None)
    if not sources:
        raise ConfigError(
            "there is nothing to evaluate on", got="no --data, and data.eval_split = null", remedy="pass --data PLACE"
        )
    say_notes(sources.values(), say)
    survey([Part(source=source, trains=False) for source in sources.values()], config.data, say=say)
    model = read_model(config)
    for own, source in sources.items():
        settle(own, lint_sources([source], mode=config.data.mode), say=say)
        check_lengths(own, config, [source], model.encoder.count, say=say)
    sets = check_sets(config, sources, model, say=say)
    return EvaluationTarget(name=name, config=config, model=model, sets=sets)
