"""Whether reward functions get what they need beside a completion, checked before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from common.config.schema import Config
from common.data.row import OWN_COLUMNS
from common.data.sources import ExampleSource, Outline
from common.errors import ConfigError, DataError
from common.labels.candidates import candidates
from common.labels.taxonomy import check_taxonomy
from rollout.rewards.loading import GIVEN_OF_CONFIG, GIVEN_OF_TASK, find_functions_with, find_signature

MODES_WITH_THOUGHT = ("think", "adaptive")  # in the others nothing stands before the answer


def check_rewards(config: Config, rows: Iterable[Outline]) -> None:
    """Refuse functions whose parameters are not set, or that these training rows cannot feed.

    Raises ConfigError or DataError.
    """
    names = config.reward.functions
    if find_functions_with(names, "length_target") and config.reward.length_target is None:
        raise ConfigError(
            "reward length has no length to aim at",
            got="reward.length_target = null",
            remedy="set reward.length_target to a number of tokens, the end of turn included",
        )
    if find_functions_with(names, "taxonomy"):
        offered = (name for row in rows for name in (row.label, *(candidates(row.problem) or ())))
        check_taxonomy(config.data.taxonomy, offered)
    if asking := find_functions_with(names, "candidate_probabilities"):
        _check_candidate_lists(asking[0], config, rows)


def check_columns(config: Config, source: ExampleSource, *, say: Callable[[str], None]) -> None:
    """Refuse columns that a reward function cannot be called with, or lacks; name those that it never sees.

    Raises DataError.
    """
    own = [name for name in source.columns if name not in OWN_COLUMNS]
    given = (*GIVEN_OF_TASK, *GIVEN_OF_CONFIG)
    for name in config.reward.functions:
        try:
            find_signature(name).bind((), **dict.fromkeys((*own, *given)))
        except TypeError as error:
            raise DataError(
                f"reward {name} cannot be called with the columns of {source.name}",
                got="; ".join(
                    [
                        f"{error}; columns: {', '.join(own) or 'none beside problem, image and solution'}",
                        *(f"{column} is left out, for {why}" for column, why in source.left_out.items()),
                    ]
                ),
                remedy="rename or drop the column that is a parameter already, or add the one that is missing",
            ) from error
    if hidden := [name for name in own if name in given]:
        say(f"note: reward functions get Rollcall's own {', '.join(hidden)}, not the column of that name")


def _check_candidate_lists(name: str, config: Config, rows: Iterable[Outline]) -> None:
    """Check that there is a thought before the answer, and a list of candidates in every row."""
    if config.data.mode not in MODES_WITH_THOUGHT:
        raise ConfigError(
            f"reward {name} compares thoughts, and in this mode there is none before the answer",
            got=f"data.mode = {config.data.mode}",
            remedy=f"set data.mode to {' or '.join(MODES_WITH_THOUGHT)}, or leave {name} out of reward.functions",
        )
    for row in rows:
        listed = candidates(row.problem)
        if not listed or row.label not in listed or len(set(listed)) < len(listed):
            raise DataError(
                f"reward {name} needs the probability of each candidate, and {row.id} has no usable list of them",
                got="no list: the question is open-ended" if not listed else f"label {row.label!r} of {listed[:20]}",
                remedy=f"list every class once in the question, or leave {name} out of reward.functions",
            )
