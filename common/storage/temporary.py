"""Folders of one user for what is made anew: private, and with paths that are short enough for sockets."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from pathlib import Path

from common.errors import PlacementError

LONGEST_SOCKET = 107  # bytes of the path of a unix socket
_SESSION = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # as Ray names it, with the longest pid


def make_private_folder(parent: Path) -> Path:
    """Return a folder of this user below `parent` that nobody else can enter.

    Raises:
        PlacementError: something else is in its place, or it cannot be made.
    """
    folder = parent / f"rollcall-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        fault = str(error)
    else:
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077:
            return folder
        fault = f"{stat.filemode(facts.st_mode)}, owned by user {facts.st_uid}"
    raise PlacementError(
        "there is no private folder for Ray's session",
        got=f"{folder}: {fault}",
        remedy="remove it, or point RAY_TMPDIR at a folder of your own with a short path",
    )


def choose_ray_folder() -> Path:
    """Return the folder of the session of a Ray of our own: Ray makes its own open to all.

    Raises:
        PlacementError: it is not private, cannot be made, or has so long a path that Ray can make no sockets in it.
    """
    folder = make_private_folder(Path(os.environ.get("RAY_TMPDIR") or "/tmp")) / "ray"
    if (length := len(os.fsencode(folder.absolute() / _SESSION))) > LONGEST_SOCKET:
        raise PlacementError(
            "the folder of Ray's session has too long a path for its sockets",
            got=f"{folder}: {length} bytes with the session's own, and the system takes {LONGEST_SOCKET}",
            remedy=f"point RAY_TMPDIR at a folder whose path is shorter by {length - LONGEST_SOCKET}, or unset it",
        )
    return folder


def settle_user() -> None:
    """Give a user whom the system does not know, as in a container, the name and the home that libraries ask for.

    Where somebody else has taken the name of the private folder, a new one is made each time.
    """
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid-{os.getuid()}")
        if "HOME" not in os.environ:
            os.environ["HOME"] = _make_home()


def _make_home() -> str:
    try:
        return str(make_private_folder(Path(tempfile.gettempdir())))
    except PlacementError:
        return tempfile.mkdtemp(prefix="rollcall-")
