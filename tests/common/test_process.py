"""A worker of Ray ends with its raylet; anything else is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

CHILD = "from common.process import end_with_raylet; end_with_raylet(); print(flush=True); import time; time.sleep(60)"
PARENT = (
    "import subprocess, sys;"
    "child = subprocess.Popen([sys.argv[1], '-c', sys.argv[2]], stdout=subprocess.PIPE);"
    "child.stdout.readline();"
    "print(child.pid, flush=True);"
    "input()"
)


@pytest.mark.parametrize(("name", "survives"), [("raylet", False), ("another", True)])
def test_a_worker_ends_with_its_raylet(tmp_path: Path, name: str, survives: bool) -> None:
    (tmp_path / name).symlink_to(sys.executable)
    words = [str(tmp_path / name), "-c", PARENT, sys.executable, CHILD]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            assert child.is_running()
            parent.kill()
            parent.wait()
            _, alive = psutil.wait_procs([child], timeout=0.5 if survives else 20)
            assert bool(alive) == survives
        finally:
            if child.is_running():
                child.kill()
