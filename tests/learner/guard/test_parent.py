"""Whatever becomes of a driver, its parent ends with a code, in time, and with nothing left alive."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers import jobs

pytestmark = pytest.mark.slow
LOST = (
    r"^error: the run is lost: ring driver, actor driver \(pid \d+\), node \S+: "
    r"(.*); go on with run_dir=\S+ resume=auto$"
)


@contextmanager
def guarded(tmp_path: Path, *ways: str, **popen: object) -> Iterator[subprocess.Popen[str]]:
    """Start a driver that takes these ways, below its parent, in a session of its own."""
    words = ",".join([str(tmp_path / "tried"), *ways])
    command = ["env", "--default-signal=HUP", sys.executable, "-m", "tests.helpers.guarded", words]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True} | popen
    process: subprocess.Popen[str] = subprocess.Popen(command, cwd=jobs.ROOT, text=True, **settings)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def end(tmp_path: Path, *ways: str) -> tuple[int, str, str]:
    """Return the exit code and what was printed by a run that ends by itself."""
    with guarded(tmp_path, *ways) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def read_driver(process: subprocess.Popen[str]) -> psutil.Process:
    """Wait until the driver is at work."""
    assert process.stdout
    return psutil.Process(int(process.stdout.readline().split()[-1]))


def count_tries(tmp_path: Path) -> int:
    return len((tmp_path / "tried").read_text().split())


@pytest.mark.parametrize(
    ("way", "code", "tries"), [("finish", 0, 1), ("leave", 3, 1), ("wait", 0, 1), ("hang at exit", 0, 1)]
)
def test_a_driver_that_ends_itself_has_its_own_exit_code(tmp_path: Path, way: str, code: int, tries: int) -> None:
    """Also one that waits for long, or never gets through its exit."""
    got, out, err = end(tmp_path, way)
    assert (got, err, count_tries(tmp_path)) == (code, "", tries)
    assert out.startswith("at work ")


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("kill", "killed by SIGKILL, perhaps for want of memory"),
        ("exit in C", "ended below Python with exit code 1"),
        ("freeze", r"frozen: no sign of life for \d s"),
        ("stand still", r"its main thread stands still for 5 s at \S+/learner/\S+:\d+ in \w+"),
        ("leave a child", "killed by SIGKILL, perhaps for want of memory"),
    ],
)
def test_a_lost_driver_is_one_line_and_is_tried_again(tmp_path: Path, way: str, why: str) -> None:
    """Nothing that it started lives on."""
    with guarded(tmp_path, way, "finish") as process:
        family = [read_driver(process)]
        with suppress(psutil.NoSuchProcess):  # some ways end it at once
            family += family[0].children()
        _, err = process.communicate(timeout=60)
    lost, retry = err.splitlines()
    assert (found := re.match(LOST, lost)) and re.fullmatch(why, found[1]), err
    assert retry == "retry 1 of 3: starting again with resume=auto"
    assert process.returncode == 0
    assert jobs.gone(family, timeout_s=0) == []


def test_retries_end_without_progress_and_go_on_with_it(tmp_path: Path) -> None:
    """Three in a row; a new checkpoint begins the count anew, an old one does not."""
    code, _, err = end(tmp_path, "fail")
    assert (code, count_tries(tmp_path)) == (1, 4)
    assert err.count("ZeroDivisionError: a bug") == 4
    (tmp_path / "tried").unlink()
    code, _, err = end(tmp_path, "fail", "fail", "checkpoint", "checkpoint", "fail", "fail", "fail", "fail")
    assert (code, count_tries(tmp_path)) == (1, 7)
    assert re.findall(r"^retry (\d) of 3", err, re.MULTILINE) == ["1", "2", "1", "1", "2", "3"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("to", ["parent", "driver", "group"])
def test_a_signal_ends_a_run_once_with_its_code(tmp_path: Path, number: signal.Signals, to: str) -> None:
    """Whoever gets it; a run that a signal ended is not tried again."""
    with guarded(tmp_path, "close") as process:
        driver = read_driver(process)
        if to == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if to == "parent" else driver.pid, number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, "closing\nclosed\n", "")
    assert count_tries(tmp_path) == 1


def test_a_ctrl_c_of_a_terminal_ends_a_run_once(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with guarded(tmp_path, "close", stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal) as process:
        os.close(theirs)
        said = b""
        while b"at work" not in said:
            said += os.read(ours, 1000)
        os.write(ours, b"\x03")
        assert process.wait(30) == 130
        with suppress(OSError):  # as the end of a terminal reads
            while chunk := os.read(ours, 1000):
                said += chunk
    os.close(ours)
    assert said.count(b"closing") == said.count(b"closed") == 1, said


def take_terminal() -> None:
    """Make stdin the terminal of this session, whose Ctrl-C goes to its group."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_hangup_under_nohup_is_nothing(tmp_path: Path) -> None:
    words = f"{tmp_path / 'tried'},work"
    command = ["env", "--ignore-signal=HUP", sys.executable, "-m", "tests.helpers.guarded", words]
    with subprocess.Popen(command, cwd=jobs.ROOT, text=True, stdout=subprocess.PIPE) as process:
        driver = read_driver(process)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGHUP)
        os.kill(driver.pid, signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 143


def test_a_driver_that_does_not_heed_a_signal_is_killed(tmp_path: Path) -> None:
    with guarded(tmp_path, "ignore") as process:
        read_driver(process)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    (line,) = err.splitlines()
    assert (found := re.match(LOST, line)) and found[1].startswith("did not end within ")


def test_ctrl_z_is_no_freeze(tmp_path: Path) -> None:
    """It stops parent and driver alike, for longer than the heartbeat's deadline."""
    with guarded(tmp_path, "work", "finish") as process:
        driver = read_driver(process)
        time.sleep(1.5)  # its heart beats
        os.killpg(process.pid, signal.SIGSTOP)  # a group without a terminal takes no SIGTSTP
        jobs.wait_for("stop", lambda: driver.status() == psutil.STATUS_STOPPED, process, timeout_s=5)
        time.sleep(5)
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(1.5)
        assert process.poll() is None
        driver.suspend()  # alone it is one
        _, err = process.communicate(timeout=30)
    assert re.search(r"frozen: no sign of life for \d s", err)


def test_a_reader_that_stops_to_read_is_no_standstill(tmp_path: Path) -> None:
    """As `less` does, or Ctrl-S of a terminal; the driver waits as long as it likes."""
    with guarded(tmp_path, "stall", "finish") as process:
        driver = read_driver(process)
        time.sleep(8)  # STANDSTILL_S is 4 s here
        assert process.poll() is None
        assert driver.is_running()
        assert count_tries(tmp_path) == 1


def test_a_driver_ends_with_its_parent(tmp_path: Path) -> None:
    with guarded(tmp_path, "work") as process:
        driver = read_driver(process)
        process.kill()
        assert jobs.gone([driver], timeout_s=5) == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_files_change_nothing(tmp_path: Path, closed: str) -> None:
    """The pipe would else take the place of one, and be printed into."""
    command = f"{sys.executable} -m tests.helpers.guarded {tmp_path / 'tried'},fail {closed}"
    assert subprocess.run(["bash", "-c", command], cwd=jobs.ROOT, check=False, capture_output=True).returncode == 1
    assert count_tries(tmp_path) == 4


def test_a_reader_that_goes_away_is_141(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tests.helpers.guarded {tmp_path / 'tried'},talk | head -1; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", command], cwd=jobs.ROOT, check=False, timeout=30).returncode == 141


def test_a_run_folder_on_a_stuck_disk_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from learner.guard import parent

    monkeypatch.setattr(parent, "RECORD_S", 0.3)
    os.mkfifo(tmp_path / "events.jsonl")  # whoever opens it waits for a reader

    def write(folder: Path) -> None:
        (folder / "events.jsonl").open("w")

    began = time.monotonic()
    parent.record_in_time({"folder": str(tmp_path)}, write)
    assert 0.2 < time.monotonic() - began < 5
