"""Lines are whole or absent, on a real full volume too."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from pathlib import Path

import pytest

from learner.storage.files import append_jsonl, read_jsonl, replace_text


def test_a_line_that_does_not_fit_is_not_there_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"step": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the kernel writes up to it, then refuses
    try:
        with pytest.raises(OSError, match=r"No space left|too large"):
            append_jsonl(path, {"step": 1, "text": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append_jsonl(path, {"step": 2})
    assert list(read_jsonl(path)) == [{"step": 0}, {"step": 2}]


def test_a_replacement_that_fails_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    replace_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            replace_text(path, "new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_plain_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    """As root a rename over /dev/null would take it from the whole machine."""
    place = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tmp_path):
            listener.bind("x")
    before = place.lstat()
    with pytest.raises(OSError, match="no plain file"):
        replace_text(place, "text")
    assert place.lstat() == before
    assert list(tmp_path.iterdir()) == [place]
