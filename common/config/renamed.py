"""Names that users write and that have changed. For one release the old name is refused by an error that says the new
one; after that its line goes."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    # Keys of the configuration, in recipes and on the command line.
    "evaluation.at": "evaluation.pass_at_k",
    # Options of other commands, with their values.
    "--candidates seed": "--candidates cls_rl",  # of common.data.build
    "--seed-format": "--cls-rl-format",  # of learner.evaluate
    # Parameters of a user's own reward function.
    "beliefs": "candidate_probabilities",
}


def explain_renamed(name: str) -> str | None:
    """Return what to tell a user who writes `name`, `evaluation.at is now called evaluation.pass_at_k`; None when it
    has not been renamed."""
    return f"{name} is now called {RENAMED[name]}" if name in RENAMED else None
