"""Whether the model hub answers, found out in seconds: its own client retries for half a minute."""

from __future__ import annotations

_PATIENCE_S = 5.0


def unreachable() -> str | None:
    """Why the hub cannot be reached; None when it answers, or when HF_HUB_OFFLINE says to use the local cache."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except Exception as error:  # noqa: BLE001  its class depends on the HTTP library of the day: requests, httpx, httpx2
        return f"{constants.ENDPOINT}: {error}"
    return None
