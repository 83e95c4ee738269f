"""Every error that Rollcall raises on purpose: each says what is wrong, what was found, and what to do about it.

What was found may be anybody's text, so its control characters are escaped and its length is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST_FAULT = 300  # characters of a library's error
_LONGEST_DATUM = 200


def escape_unprintable(text: str) -> str:
    """Escape every control, invisible and line-breaking character, since text may come from a model: `a\\nb`."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def escape_lines(text: str) -> str:
    """Escape as `escape_unprintable` does, and leave the ends of lines."""
    return "\n".join(map(escape_unprintable, text.split("\n")))


def as_utf8(text: str) -> str:
    """Escape what UTF-8 cannot hold, as of file names in another encoding: `caf\\udce9.jpg` for Latin-1's café.jpg."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def clip(text: str, most: int = _LONGEST_DATUM) -> str:
    """Return a text of at most about `most` characters: a longer one ends with its length.

    Whatever comes from data goes through here on its way into a message: a cell may hold megabytes.
    """
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


class RollcallError(Exception):
    """An error a user can act on.

    The message always has three parts: what is wrong, what was found, and what to do about it.
    """

    longest = 10_000  # characters of a part in the message; the parts themselves are kept whole

    def __init__(self, what: str, *, got: object, remedy: str) -> None:
        super().__init__(what, got, remedy)
        self.what = what
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        what, got = (clip(str(part), self.longest) for part in (self.what, self.got))
        return escape_lines(f"{what}\n  got:    {got}\n  remedy: {self.remedy}")

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive the default pickling
        return _rebuild, (type(self), self.what, self.got, self.remedy)


def _rebuild(kind: type[RollcallError], what: str, got: object, remedy: str) -> RollcallError:
    return kind(what, got=got, remedy=remedy)


@contextmanager
def raise_as(error: type[RollcallError], what: str, *, remedy: str) -> Iterator[None]:
    """Let anything that goes wrong within the block be one error: `what` is wrong, and what a library said of it.

    It stands at every door to foreign files: what their readers raise is in no list. A RollcallError passes as it is,
    and so does what ends the process (Ctrl-C, a signal).
    """
    try:
        yield
    except RollcallError:
        raise
    except BaseException as fault:
        if not isinstance(fault, Exception) and type(fault).__module__ != "pyo3_runtime":  # a panic of Rust is its own
            raise
        raise error(what, got=describe_fault(fault), remedy=remedy) from fault


def describe_fault(fault: BaseException) -> str:
    """Return the kind and the text of any error as one line of at most 300 characters; of files what the system says.

    `ValueError: year -1 is out of range`, `Permission denied`.
    """
    if isinstance(fault, OSError) and fault.strerror:
        return str(fault.strerror)
    try:
        text = clip(" ".join(str(fault).split()), _LONGEST_FAULT)
    except Exception:  # noqa: BLE001  # some raise when they are asked what they say
        text = ""
    return f"{type(fault).__name__}: {text}" if text else type(fault).__name__


def describe_cause(fault: BaseException) -> str:
    """Return what any error is about as one line; of ours what was found, and not what to do about it."""
    return f"{fault.what}: {fault.got}" if isinstance(fault, RollcallError) else describe_fault(fault)


class ConfigError(RollcallError):
    """The configuration cannot work: unknown key, impossible value or combination."""


class DataError(RollcallError):
    """A data set, row, image or label is unusable."""

    longest = 2_000  # a cell may hold megabytes


class ModelError(RollcallError):
    """A model folder or hub id is unreadable or of an unsupported family."""


class PlacementError(RollcallError):
    """The cluster cannot hold what the configuration asks for."""


class RunFolderError(RollcallError):
    """The run folder is unwritable, in use, or holds another run."""


class CheckpointError(RollcallError):
    """There is no usable checkpoint, or it does not fit this configuration."""


class ProcessError(RollcallError):
    """A process or an object of the run is lost, or a process raised what is no error of ours."""


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


class LearnerLostError(LearnerError):
    """A rank of the learner is lost, and with it what all ranks held."""

    def __init__(self, what: str, *, got: object, remedy: str, actor: str = "LearnerRank", node: str = "") -> None:
        super().__init__(what, got=got, remedy=remedy)
        self.actor, self.node = actor, node
        self.final = False  # nothing more is tried
