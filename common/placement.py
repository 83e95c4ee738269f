"""Waiting on Ray: every wait has a name and a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.errors import DeadlineError


def get(refs: Sequence[Any], *, what: str, timeout_s: float) -> list[Any]:
    """The values of object refs, in order. Raises DeadlineError naming `what`, or whatever the remote side raised."""
    import ray

    try:
        return list(ray.get(list(refs), timeout=timeout_s))
    except ray.exceptions.GetTimeoutError as error:
        _, missing = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        raise DeadlineError(
            f"waited too long for {what}",
            got=f"{len(missing)} of {len(refs)} still missing after {timeout_s:g} s",
            remedy="look for its process in Ray's logs, or raise the timeout in its section of the configuration",
        ) from error
