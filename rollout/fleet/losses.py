"""Why an engine is lost, and whether another one may do better."""

from __future__ import annotations

from common.errors import BrokenEngineError, EngineError, RollcallError
from common.placement import find_cause
from rollout.fleet.patience import LostError


def explain_loss(error: BaseException) -> str:
    """Return why an engine is lost, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BrokenEngineError):
        return str(cause.got)
    if isinstance(error, RollcallError):
        return f"{error.what}: {error.got}"
    if isinstance(error, LostError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def find_own_error(error: BaseException) -> BaseException | None:
    """Return what an engine raised of its own, so that another one may raise it too; None where its process is lost.

    vLLM that failed in a step is as good as lost: its memory or its GPU may be the cause.
    """
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return None if isinstance(cause, BrokenEngineError) else cause or error
    if isinstance(error, ray.exceptions.RayActorError) and "creation task" in str(error):
        return EngineError(
            "a rollout engine could not start",
            got=find_cause(error),
            remedy="the engine's own error is above and in Ray's worker logs; check model.dtype, memory and device",
        )
    return None if isinstance(error, (LostError, ray.exceptions.RayError)) else error
