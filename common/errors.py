"""Every error that Rollcall raises on purpose: each says what is wrong, what was found, and what to do about it.

What was found may be anybody's text, so its control characters are escaped.
"""

from __future__ import annotations


def escape_unprintable(text: str) -> str:
    """Escape every control, invisible and line-breaking character, since text may come from a model: `a\\nb`."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def escape_lines(text: str) -> str:
    """Escape as `escape_unprintable` does, and leave the ends of lines."""
    return "\n".join(map(escape_unprintable, text.split("\n")))


class RollcallError(Exception):
    """An error a user can act on.

    The message always has three parts: what is wrong, what was found, and what to do about it.
    """

    def __init__(self, what: str, *, got: object, remedy: str) -> None:
        super().__init__(what, got, remedy)
        self.what = what
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        return escape_lines(f"{self.what}\n  got:    {self.got}\n  remedy: {self.remedy}")

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive the default pickling
        return _rebuild, (type(self), self.what, self.got, self.remedy)


def _rebuild(kind: type[RollcallError], what: str, got: object, remedy: str) -> RollcallError:
    return kind(what, got=got, remedy=remedy)


class ConfigError(RollcallError):
    """The configuration cannot work: unknown key, impossible value or combination."""


class DataError(RollcallError):
    """A data set, row, image or label is unusable."""


class ModelError(RollcallError):
    """A model folder or hub id is unreadable or of an unsupported family."""


class PlacementError(RollcallError):
    """The cluster cannot hold what the configuration asks for."""


class RunFolderError(RollcallError):
    """The run folder is unwritable, in use, or holds another run."""


class CheckpointError(RollcallError):
    """There is no usable checkpoint, or it does not fit this configuration."""


class RewardError(RollcallError):
    """A reward function raised, timed out or returned something that is not one finite number a completion."""


class EngineError(RollcallError):
    """A rollout engine cannot serve: dead beyond its restarts, stale weights, or refused weights."""


class BrokenEngineError(EngineError):
    """An engine failed while it worked and must not be used again: only a new process is clean."""


class DeadlineError(RollcallError):
    """A named wait ran past its deadline."""


class LearnerError(RollcallError):
    """Training diverged: the loss or the gradient is not a finite number."""
