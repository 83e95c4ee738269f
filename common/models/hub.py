"""Whether the model hub answers, found out in seconds: its own client retries for half a minute."""

from __future__ import annotations

from pathlib import Path

from common.errors import ModelError, RollcallError
from common.models.weight_files import find_files

_TIMEOUT_S = 5.0


def find_snapshot(name: str, revision: str | None, *, whole: bool = True) -> Path | None:
    """Return the folder of a hub model in this host's cache; None where there is none.

    Args:
        whole: also return None where some of its weights are not there: the hub has the others.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if whole:
            find_files(folder)
    except (LocalEntryNotFoundError, ValueError, ModelError):
        return None
    return folder


def is_offline() -> bool:
    """Say whether HF_HUB_OFFLINE keeps this process from the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def require_hub(name: str, *, error: type[RollcallError]) -> None:
    """Return when the hub answers, or when HF_HUB_OFFLINE says to use the local cache.

    Args:
        name: what is looked for there, for the message: `data.path = someone/some-set`.
        error: the class to raise when the hub cannot be reached.
    """
    if reason := find_hub_fault():
        raise error(
            f"{name} is no local path and the hub cannot be reached",
            got=reason,
            remedy="check the path or the network; with a copy in the local cache set HF_HUB_OFFLINE=1",
        )


def find_hub_fault() -> str | None:
    """Return why the hub cannot be reached; None when it answers or is not to be asked."""
    from huggingface_hub import constants, get_session

    if is_offline():
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001  # the class depends on the HTTP library: requests, httpx, httpx2
        return f"{constants.ENDPOINT}: {error}"
    return None
