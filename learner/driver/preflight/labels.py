"""Second step: labels that metric and rewards can tell apart, and the lists that questions offer of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from common.config.schema import Config
from common.data.lint import lint_sources
from common.data.reshuffle import Reshuffle
from common.data.sources import ExampleSource
from common.labels.aliases import check_aliases
from common.labels.candidates import candidates
from common.labels.lint import settle, unanswerable, unsayable
from learner.driver.preflight.data import RunData
from rollout.rewards.preflight import check_columns, check_rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLabels:
    """What questions offer to choose from."""

    offered: tuple[str, ...]  # every candidate of any training row, sorted
    reshuffle: Reshuffle | None  # rewrites a training question's list at each visit; None leaves it as it is


def check_labels(config: Config, data: RunData, *, say: Callable[[str], None]) -> RunLabels:
    """Check aliases, labels and what reward functions need of them; say what is doubtful.

    Raises DataError or ConfigError for what the metric of `data.mode` or a reward could not score.
    """
    _check_aliases(config, [*data.own, *data.sets.values()], say)
    how = config.data.reshuffle
    reshuffle = None if how == "none" else Reshuffle(data.train, seed=config.seed, anew=how == "draw")
    findings = lint_sources(data.own, mode=config.data.mode, drawn_from=reshuffle.pool if reshuffle else ())
    settle(config.data.path, findings, say=say)
    check_rewards(config, data.train.outlines)
    check_columns(config, data.train, say=say)
    return RunLabels(offered=tuple(list_candidates(data.train)), reshuffle=reshuffle)


def check_lengths(
    name: str,
    config: Config,
    sources: Sequence[ExampleSource],
    count: Callable[[str], int],
    *,
    say: Callable[[str], None],
) -> None:
    """Refuse labels that no answer could give: a completion is too short for them, or the model has no tokens for them.

    Raises DataError naming them.

    Args:
        name: of the data, for the error.
        count: tokens of a text; 0 for one that the model cannot say.
    """
    labels = sorted({label for source in sources for label in source.labels})
    aliases, count = config.data.aliases, cache(count)
    too_long = unanswerable(labels, aliases, count, config.rollout.max_completion_tokens)
    settle(name, [unsayable(labels, aliases, count), too_long], say=say)


def list_candidates(source: ExampleSource) -> list[str]:
    """List every candidate of any row, sorted."""
    problems = {outline.problem for outline in source.outlines}
    return sorted({label for problem in problems for label in candidates(problem) or ()})


def _check_aliases(config: Config, sources: Sequence[ExampleSource], say: Callable[[str], None]) -> None:
    labels = {label for source in sources for label in (*list_candidates(source), *source.labels)}
    if strange := check_aliases(config.data.aliases, sorted(labels)):
        say(f"warning: data.aliases names {len(strange)} labels that no row has or offers: {', '.join(strange[:5])}")
