"""Drivers that end, freeze or are lost in every way, below a real parent: `python -m tests.helpers.guarded FILE,WAY`.

A driver notes its start in the file, and prints a line once it is at work. Deadlines are seconds here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.command import Grace, run_command
from common.errors import DataError
from learner.guard import line as lines
from learner.guard import parent
from learner.guard.line import Line

REFUSAL = DataError("a row is bad", got="row 3", remedy="mend it")
parent.FAREWELL_S = parent.CLOSING_S = parent.LINGER_S = 1.0
lines.STANDSTILL_S = 4.0


def announce() -> None:
    os.write(1, f"at work {os.getpid()}\n".encode())  # a print that a signal interrupts may come twice
    time.sleep(0.2)


def work() -> None:
    """Compute until a signal comes."""
    while True:
        time.sleep(0.01)


def fail() -> None:
    raise ZeroDivisionError("a bug")


def refuse() -> None:
    raise REFUSAL


def hold_the_lock() -> None:
    """Sleep in C without giving up the interpreter's lock, as a library that hangs."""
    ctypes.PyDLL(None).sleep(60)


def stand_still() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def wait_long() -> None:
    """Wait for longer than the main thread may stand still, with a deadline."""
    threading.Event().wait(8)


def ignore_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    announce()
    work()


def close_twice() -> None:
    """Note every signal that comes, and end by the first."""
    try:
        announce()
        work()
    finally:
        print("closing", flush=True)
        time.sleep(0.5)
        print("closed", flush=True)


def stall() -> None:
    """Print more than anybody reads, then end."""
    while True:
        print("a line " * 100, flush=True)


def talk() -> None:
    while True:
        print("a line", flush=True)


def leave_a_child() -> None:
    """Die and leave a process in a session of its own."""
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    announce()
    os.kill(os.getpid(), signal.SIGKILL)


def hang_at_exit() -> None:
    import atexit

    atexit.register(time.sleep, 60)


WAYS: dict[str, Callable[[], None]] = {
    "finish": lambda: None,
    "fail": fail,
    "refuse": refuse,
    "leave": lambda: sys.exit(3),
    "work": work,
    "exit in C": lambda: os._exit(1),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "freeze": hold_the_lock,
    "stand still": stand_still,
    "wait": wait_long,
    "ignore": ignore_signals,
    "close": close_twice,
    "talk": talk,
    "stall": stall,
    "leave a child": leave_a_child,
    "hang at exit": hang_at_exit,
}


WAIT_FIRST = ("ignore", "close", "leave a child")  # they announce themselves


def main(words: Sequence[str], line: Line) -> int:
    """Take the first way; after a retry the next one. `checkpoint` tells of one, and fails."""
    (count_file, *ways), resumed = words[0].split(","), "resume=auto" in words
    tried = Path(count_file)
    attempt = len(tried.read_text().split()) if tried.exists() else 0
    with tried.open("a") as file:
        file.write("x ")
    with run_command() as command:
        command.begin_work()
        line.tell(retries=3, heartbeat_s=3.0, grace_s=0.0, place="runs/x")
        assert resumed == (attempt > 0)
        grace = Grace(5)
        grace.install()
        if ways[0] not in WAIT_FIRST:
            announce()
        with line.beat():
            way = ways[min(attempt, len(ways) - 1)]
            if way == "checkpoint":
                line.tell(checkpoint=attempt)
                way = "exit in C"
            WAYS[way]()
    return command.exit_code


if __name__ == "__main__":
    sys.exit(parent.run_guarded(main))
