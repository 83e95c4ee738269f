"""Whether the model hub answers, found out in seconds: its own client retries for half a minute."""

from __future__ import annotations

from pathlib import Path

from common.config.foreign_text import parse_json
from common.errors import RollcallError

_TIMEOUT_S = 5.0


def find_snapshot(name: str, revision: str | None) -> Path | None:
    """Return the folder of a hub model in this host's cache, if all of its weights are there; None elsewhere."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None
    index = folder / "model.safetensors.index.json"
    shards = set(parse_json(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    return folder if all((folder / shard).is_file() for shard in shards) else None


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

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001  # the class depends on the HTTP library: requests, httpx, httpx2
        return f"{constants.ENDPOINT}: {error}"
    return None
