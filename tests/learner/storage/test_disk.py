"""A disk that hangs holds nobody up for longer than seconds, and what was written behind it comes in order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner.storage import disk
from learner.storage.disk import Disk
from tests.helpers import jobs


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PATIENCE_S", 0.3)


def test_a_write_is_done_when_it_returns(tmp_path: Path) -> None:
    Disk().write(lambda: (tmp_path / "a").write_text("x"))
    assert (tmp_path / "a").read_text() == "x"


def test_the_error_of_a_write_is_raised() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Disk().write(lambda: Path("/nowhere/a").write_text("x"))


def test_behind_a_write_that_hangs_others_wait_and_nobody_waits_for_them(tmp_path: Path) -> None:
    pipe, order = tmp_path / "pipe", list[int]()
    os.mkfifo(pipe)  # whoever opens it to write waits for a reader
    slow = Disk()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"did not answer for 0.3 s"):
        slow.write(lambda: pipe.write_text("x"))
    for number in range(3):
        slow.write(lambda number=number: order.append(number))  # type: ignore[misc]
    assert time.monotonic() - began < 3
    assert order == []
    assert pipe.read_text() == "x"  # the disk is back
    slow.write(lambda: order.append(3))
    deadline = time.monotonic() + 10
    while len(order) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert order == [0, 1, 2, 3]
    slow.write(lambda: order.append(4))
    assert order[-1] == 4, "it is waited for again"


def test_too_much_behind_it_is_lost_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MOST_WAITING", 2)
    os.mkfifo(tmp_path / "pipe")
    slow = Disk()
    with pytest.raises(TimeoutError):
        slow.write(lambda: (tmp_path / "pipe").write_text("x"))
    for _ in range(2):
        slow.write(lambda: None)
    with pytest.raises(TimeoutError, match="too much waits"):
        slow.write(lambda: None)
    (tmp_path / "pipe").read_text()


def test_no_exit_waits_for_a_disk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = f"""
from learner.storage import disk
disk.PATIENCE_S = 0.1
try:
    disk.Disk().write(lambda: open({str(tmp_path / "pipe")!r}, "w"))
except TimeoutError:
    print("late")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=jobs.ROOT, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"late\n"
