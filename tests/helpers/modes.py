"""Modes of files, as the umask gives them to any new one."""

from __future__ import annotations

import stat
from pathlib import Path


def assert_modes(folder: Path, umask: int) -> None:
    """Of the folder and everything in it."""
    assert any(path.is_file() for path in folder.rglob("*"))
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert path.is_symlink() or mode == (0o777 if path.is_dir() else 0o666) & ~umask, (path, oct(mode))
