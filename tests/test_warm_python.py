"""The suite's warm Python does what a cold one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import warm_python

SCRIPT = """
import os, signal, sys
print(__name__, sys.argv, os.getcwd(), sys.path[0], os.environ["COLOUR"], sys.stdin.read(), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["0", "3", "killed"])
@pytest.mark.parametrize("how", [("folder/script.py",), ("-u", "folder/script.py"), ("-m", "folder.script")])
def test_words_files_folder_and_end_are_those_of_a_cold_one(tmp_path: Path, how: tuple[str, ...], end: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/script.py").write_text(SCRIPT)

    def run(*python: str) -> tuple[int, str]:
        environment = os.environ | {"COLOUR": "green", "RAY_RAYLET_PID": str(os.getpid())}  # the lightest kind
        done = subprocess.run(
            [*python, *how, end, "a b"],
            cwd=tmp_path,
            env=environment,
            input="hello",
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    code, printed = run(*warm_python.COMMAND)
    assert (code, printed) == run(sys.executable)
    assert "__main__" in printed and "hello" in printed and code == {"0": 0, "3": 3, "killed": -9}[end]
