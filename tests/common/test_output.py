"""What commands print, where nobody takes it, where it does not fit, and in whatever encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import warm_python
from tests.helpers.makers import image_folder

pytestmark = pytest.mark.slow  # each starts a Python or two

ROOT = Path(__file__).resolve().parents[2]
PRINTING = (  # and nothing else
    "learner.main --help",
    "learner.main --print-config",
    "learner.evaluate --help",
    "learner.report --help",
    "common.data.build --help",
    "common.data.lint --help",
    "common.data.lint embedded:digits",
    "common.config.reference",
    "learner.main --dry-run",
    "learner.main --plan",
)


def run(words: str, *, closed: str = "", env: Mapping[str, str] | None = None, **streams: int) -> str:
    """What a command printed, with its exit code as the last line."""
    command = [sys.executable, "-m", *words.split()]
    if closed:
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=warm_python.cold(os.environ) | dict(env or {}),
        stdout=streams.get("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        check=False,
        timeout=200,
    )
    out = (done.stdout or b"").decode(errors="replace")
    return f"{out}{done.stderr.decode(errors='replace')}\n{done.returncode}"


@contextmanager
def no_reader() -> Iterator[int]:
    """The end of a pipe whose reader has gone away."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("words", PRINTING)
def test_a_reader_that_went_away_ends_what_only_prints_without_a_word(words: str) -> None:
    """141, as a shell says of any program that SIGPIPE ends."""
    with no_reader() as stdout:
        assert run(words, stdout=stdout) == "\n141"


@pytest.mark.parametrize("words", PRINTING[:4])
def test_a_full_disk_is_one_error(words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        printed = run(words, stdout=full.fileno())
    assert printed.startswith("error: what is to be printed cannot be written\n  got:    No space left on device")
    assert printed.endswith("\n1") and "Traceback" not in printed and "Exception ignored" not in printed


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(closed: str) -> None:
    assert run("learner.main --print-config", closed=closed) == "\n0"


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What other code prints would be written into it."""
    code = f"""
from common.command import run_command
with run_command(), open({str(tmp_path / "file")!r}, "w") as file:
    print("as it was", file=file)
    print("printed", flush=True)
"""
    (tmp_path / "code.py").write_text(code)
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, str(tmp_path / "code.py")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert (tmp_path / "file").read_text() == "as it was\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict"])
def test_a_set_is_built_and_linted_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    """What the encoding lacks is escaped."""
    image_folder(tmp_path / "photos", {"naïve 猫": 3, "dog": 3})
    env = {"PYTHONIOENCODING": encoding}
    printed = run(f"common.data.build {tmp_path}/photos --shots all --out {tmp_path}/set", env=env)
    assert printed.endswith("\n0"), printed
    assert "2 classes: dog, na" in printed and r"ve \u732b" in printed
    assert run(f"common.data.lint {tmp_path}/set", env=env).endswith("\n0")


def test_names_that_the_locale_cannot_read_are_refused_with_its_cure(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", {"naïve": 3, "dog": 3})
    env = {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}
    printed = run(f"common.data.lint {tmp_path}/photos", env=env)
    assert printed.endswith("\n2") and "set PYTHONUTF8=1" in printed and "Traceback" not in printed


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "LC_ALL": "POSIX"}], ids=str)
def test_help_prints_in_any_encoding(env: dict[str, str]) -> None:
    assert run("learner.main --help", env=env).endswith("\n0")


def test_a_set_is_built_though_nobody_reads_its_summary(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", {"cat": 3, "dog": 3})
    with no_reader() as stdout:
        printed = run(f"common.data.build {tmp_path}/photos --shots all --out {tmp_path}/set", stdout=stdout)
    assert printed == "warning: nobody takes what is printed any more (Broken pipe); the work goes on\n\n0"
    assert (tmp_path / "set/README.md").is_file()
