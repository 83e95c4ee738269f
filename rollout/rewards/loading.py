"""The functions that the names in `reward.functions` stand for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

from common.config.renamed import explain_renamed
from common.config.schema import RewardConfig
from common.errors import ConfigError
from rollout.rewards import REWARDS, RewardFunction
from rollout.rewards.model import RewardModel, check_reward_model

MODEL_PREFIX = "model:"
# What every function is given by name, whatever the row: of its group, and of the configuration.
GIVEN_OF_TASK = ("prompt_id", "problem", "label", "token_ids", "candidate_probabilities")
GIVEN_OF_CONFIG = ("mode", "aliases", "taxonomy", "length_target", "repetition_ngram")


def check_functions(config: RewardConfig) -> None:
    """Refuse, before anything is started, what no reward actor could load. Raises ConfigError or ModelError."""
    for name in config.functions:
        if name.startswith(MODEL_PREFIX):
            check_reward_model(name.removeprefix(MODEL_PREFIX))
        else:
            load_function(name)


def find_functions_with(names: Iterable[str], parameter: str) -> list[str]:
    """Return those of the reward functions that name `parameter` in their signature; a reward model never does."""
    functions = [name for name in names if not name.startswith(MODEL_PREFIX)]
    return [name for name in functions if parameter in inspect.signature(load_function(name)).parameters]


def find_signature(name: str) -> inspect.Signature:
    """Return how a reward function is called; a reward model is not loaded for it."""
    if not name.startswith(MODEL_PREFIX):
        return inspect.signature(load_function(name))
    whole = inspect.signature(RewardModel.__call__)
    return whole.replace(parameters=list(whole.parameters.values())[1:])  # without self


def load_function(name: str, *, model_path: str | None = None) -> RewardFunction:
    """Return the function of a name in REWARDS, a `package.module:function` or a `model:<hub id or folder>`.

    Args:
        model_path: where this host has the model, if not under its name.

    Raises ConfigError for a name without a function, or a function that cannot take every column of a row. Raises
    ModelError for an unusable reward model.
    """
    if name.startswith(MODEL_PREFIX):
        return RewardModel(model_path or name.removeprefix(MODEL_PREFIX))
    if ":" in name:
        return _import(name)
    if name not in REWARDS:
        raise ConfigError(
            f"reward.functions names an unknown reward: {name}",
            got=name,
            remedy=f"{_perhaps(name, REWARDS)}use one of {', '.join(REWARDS)}, package.module:function or model:<id>",
        )
    return REWARDS[name]


def _import(name: str) -> RewardFunction:
    """Import a user's function. Raises ConfigError when that fails or it has another signature."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything, and call sys.exit
        raise ConfigError(
            f"reward.functions: cannot import {module_name} for {name}",
            got=f"{type(error).__name__}: {error}",
            remedy="write package.module:function, and start where `python -c 'import package.module'` works",
        ) from error
    if not hasattr(module, attribute):
        raise ConfigError(
            f"reward.functions: {module_name} has no {attribute}",
            got=name,
            remedy=f"{_perhaps(attribute, vars(module))}write package.module:function",
        )
    function = getattr(module, attribute)
    _check_signature(name, function)
    return function  # type: ignore[no-any-return]  # what it returns is checked at every call


def _check_signature(name: str, function: Any) -> None:
    """Raise ConfigError for what cannot be called as a reward function, or names a parameter by an old name."""
    remedy = "write it as def reward(completions, *, label, **columns) -> list[float]"
    if not callable(function):
        raise ConfigError(f"reward.functions: {name} is not callable", got=type(function).__name__, remedy=remedy)
    if kind := _find_kind_without_numbers(function):
        raise ConfigError(f"reward.functions: {name} can give no list of numbers", got=kind, remedy=remedy)
    try:
        signature = inspect.signature(function)
        signature.bind_partial((), label="", some_other_column_of_the_row="")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"reward.functions: {name} does not take completions, label and every other column",
            got=f"{error}",
            remedy=remedy,
        ) from error
    for parameter in signature.parameters:
        if renamed := explain_renamed(parameter):
            raise ConfigError(
                f"reward.functions: {name} names a parameter by its old name",
                got=f"a parameter {parameter}",
                remedy=f"rename it: {renamed}",
            )


def _find_kind_without_numbers(function: Any) -> str | None:
    """Name the kind of callable that never returns a list of numbers; None for any other."""
    if inspect.isclass(function):
        return "a class: name a function, or an object of it"
    for called in (function, getattr(function, "__call__", None)):  # noqa: B004  # an object's own may be one of them
        if inspect.iscoroutinefunction(called):
            return "an async function"
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            return "a generator: it yields"
    return None


def _perhaps(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"perhaps you meant {close[0]}; " if close else ""
