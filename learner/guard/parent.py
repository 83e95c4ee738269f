"""The parent process of a run: it starts the driver, passes on signals, and ends what is left when that is lost.

Ray can freeze or end a process below Python, and a signal can stop one. Only another process can then say so:

    terminal, scheduler -- signals --> parent -- signals --> driver --> Ray, engines, ranks
                                         ^------- pipe --------'

The driver is forked before anything is imported that is slow or has threads. When it dies without a farewell, is silent
for too long, or says that it is lost, everything below the parent is killed. One line says why, and the run folder too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.command import FAILED, occupy_standard_files, say
from common.config.cli import FLAGS
from common.config.foreign_text import parse_json
from common.errors import describe_fault
from common.placement import answers
from common.process import adopt_orphans, end_with_parent
from learner.guard.line import Line, takes_output

TICK_S = 0.5
ANSWER_S = 10.0  # for Ray's own error to end a driver that has lost its cluster
FAREWELL_S = 30.0  # to exit after a farewell
LINGER_S = 5.0  # for processes of a driver that ended well
KILL_S = 5.0
RECORD_S = 5.0  # to write to the run folder: its disk may be stuck
CLOSING_S = 60.0  # beyond `checkpoint.grace_s`: to close everything after a signal
PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
Main = Callable[[Sequence[str], Line], int]


@dataclass(slots=True)
class Told:
    """What a driver has told so far, and the seconds since. Those in which this process stood still do not count."""

    facts: dict[str, Any] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)  # by fact; "word" is any message

    def take(self, facts: Mapping[str, Any]) -> None:
        """Remember a message; of several losses the first, which brought the others about."""
        self.facts = {**self.facts, **facts, **({"lost": self.facts["lost"]} if "lost" in self.facts else {})}
        self.since["word"] = 0.0
        for name in facts:
            if name != "lost" or "lost" not in self.since:
                self.since[name] = 0.0

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        for name in self.since:
            self.since[name] += seconds

    def find_fault(self) -> str | None:
        """Say why the driver must be killed; None where it need not be."""
        facts, since = self.facts, self.since
        if "farewell" in facts:
            return "did not exit after its last word" if since["farewell"] > FAREWELL_S else None
        if "lost" in facts and since["lost"] > ANSWER_S:
            return str(facts["lost"])
        if facts.get("wait") and since["wait"] > facts["seconds"]:
            return f"waited longer than {facts['seconds']:g} s for {facts['wait']}"
        if "asked" in facts and since["asked"] > facts.get("grace_s", 0.0) + CLOSING_S:
            return f"did not end within {since['asked']:.0f} s of {facts['asked']}"
        if facts.get("beats") and since["word"] > facts["heartbeat_s"]:
            return f"frozen: no sign of life for {since['word']:.0f} s"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a driver ended."""

    pid: int
    code: int  # for the exit of this process
    fault: str | None  # why it is lost; None where it has ended itself
    told: Told
    seconds: float


def run_guarded(main: Main) -> int:
    """Run the command line below a parent process. Return the exit code: the driver's, or FAILED of one that is lost.

    Returns in the driver too, whose exit is its own. A driver that failed is started again `retries` times in a row.
    """
    words, tries, newest = sys.argv[1:], 0, -1
    if {*words} & {*FLAGS, "--help", "-h"}:
        return main(words, Line())
    occupy_standard_files()
    adopt_orphans()
    while True:
        ending = _run_driver(main, words)
        if isinstance(ending, int):
            return ending
        facts = ending.told.facts
        if facts.get("checkpoint", -1) > newest:
            tries, newest = 0, facts["checkpoint"]
        if ending.fault:
            _report_loss(ending)
        if "asked" in facts or ending.code != FAILED or tries >= facts.get("retries", 0):
            return ending.code
        tries += 1
        _say(f"retry {tries} of {facts['retries']}: starting again with resume=auto")
        why = ending.fault or "the driver failed"
        record_in_time(facts, _write_retry, attempt=tries, of=facts["retries"], why=why)
        words = [*sys.argv[1:], f"run_dir={facts['place']}", "resume=auto"]


def _run_driver(main: Main, words: Sequence[str]) -> Ending | int:
    """Fork a driver and wait for its end; in the driver itself return its exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    signals = {number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN}  # as SIGHUP under nohup
    signals.add(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    reader, writer = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid:
        os.close(writer)
        ending = _watch(pid, reader, signals)
        os.close(reader)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return ending

    os.close(reader)
    end_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    line, code = Line(writer), FAILED
    try:
        code = main(words, line)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else FAILED
        raise
    finally:
        line.tell(farewell=code)
    return code


def _watch(pid: int, pipe: int, signals: Collection[int]) -> Ending:
    """Wait until the driver has ended or must be killed. After it nothing that it started is alive."""
    told, fault, status = Told(), None, None
    os.set_blocking(pipe, False)
    began = last = time.monotonic()
    while status is None and fault is None:
        got = signal.sigtimedwait(signals, TICK_S)
        now = time.monotonic()
        told.pass_time(min(now - last, 2 * TICK_S))  # Ctrl-Z stops this process too
        last = now
        for facts in _read(pipe):
            told.take(facts)
        if got and got.si_signo in PASSED_ON:
            _pass_on(got, pid, told)
        status = _reap(pid)
        fault = told.find_fault()
    for facts in _read(pipe):
        told.take(facts)

    death = _describe_death(status or 0, told.facts.get("lifelines", ()))
    if status is not None and "farewell" in told.facts:
        _await_descendants(LINGER_S)
    _kill_descendants()
    asked = told.facts.get("asked")
    code = 128 + signal.Signals[asked] if asked else FAILED
    if "farewell" in told.facts:
        code, fault = told.facts["farewell"], None
    elif fault is None:
        fault = told.facts.get("lost") or told.facts.get("doubt") or death
    return Ending(pid=pid, code=code, fault=fault, told=told, seconds=time.monotonic() - began)


def _pass_on(got: signal.struct_siginfo, pid: int, told: Told) -> None:
    """Give the driver a signal that it may not have got. What a terminal sends, it sends to both."""
    told.take({"asked": told.facts.get("asked", signal.Signals(got.si_signo).name)})
    if got.si_code <= 0:  # sent by a process
        os.kill(pid, got.si_signo)


def _describe_death(status: int, lifelines: Sequence[Sequence[Any]]) -> str:
    """Say how a driver died. Ray may end one that has lost its raylet before that could tell."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        more = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{more}"
    silent = [f"; {name} at {address}:{port} does not answer" for name, address, port in lifelines]
    cut = [said for said, (_, address, port) in zip(silent, lifelines, strict=True) if not answers(address, port)]
    return f"ended below Python with exit code {code}{''.join(cut)}"


def _read(pipe: int) -> Iterator[dict[str, Any]]:
    """Yield the messages that have come since."""
    data = b""
    with suppress(BlockingIOError):
        while chunk := os.read(pipe, 1 << 16):
            data += chunk
    for line in data.splitlines():
        with suppress(ValueError):  # cut short by a kill
            yield parse_json(line)


def _reap(pid: int) -> int | None:
    """Collect whoever has ended. Return the status of the driver once it has."""
    status = None
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == pid:
                status = found[1]
    return status


def list_descendants() -> list[int]:
    """Return the processes below this one, zombies left out."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(folder.name))
    found = [os.getpid()]
    for one in found:
        found += children.get(one, ())
    return found[1:]


def _await_descendants(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while list_descendants() and time.monotonic() < deadline:
        time.sleep(0.05)
        _reap(0)


def _kill_descendants() -> None:
    deadline = time.monotonic() + KILL_S
    while (left := list_descendants()) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        _reap(0)
    if left:
        _say(f"warning: these processes of the run do not end: {', '.join(map(str, left))}")


def _report_loss(ending: Ending) -> None:
    """Say in one line what is lost and why, and write it to the run folder."""
    facts = ending.told.facts
    if sys.stdout is not None and sys.stdout.isatty():
        with suppress(OSError):
            sys.stdout.write("\x1b[?25h")  # the cursor, which a live display hides
            sys.stdout.flush()
    cause = {"ring": "driver", "actor": f"driver (pid {ending.pid})", "node": socket.gethostname()}
    head = ", ".join(f"{name} {value}" for name, value in cause.items())
    go_on = f"; go on with run_dir={facts['place']} resume=auto" if "place" in facts else ""
    _say(f"error: the run is lost: {head}: {ending.fault}{go_on}")
    record_in_time(facts, write_loss, place=facts.get("place"), **cause, error=ending.fault, seconds=ending.seconds)


def write_loss(folder: Path, *, place: str, seconds: float, **cause: str) -> None:
    """Write that a run is lost to its folder, and to its bucket where that is its place."""
    from learner.guard.record import record_loss, upload_record  # numpy has threads, and drivers are forked from here
    from learner.tracking.records import Cause

    record_loss(folder, Cause(**cause), wall_seconds=seconds)
    upload_record(folder, place)


def _write_retry(folder: Path, *, attempt: int, of: int, why: str) -> None:
    from learner.guard.record import record_retry

    record_retry(folder, attempt=attempt, of=of, why=why)


def _say(text: str) -> None:
    if takes_output(wait_s=1.0):  # a reader may have stopped to read
        with suppress(OSError):  # nobody listens any more
            say(text, file=sys.stderr)


def record_in_time(facts: dict[str, Any], write: Callable[..., None], **fields: Any) -> None:
    """Write fields to the run folder, if there is one, in a process that is given RECORD_S."""
    if "folder" not in facts:
        return
    pid = os.fork()
    if not pid:
        try:
            write(Path(facts["folder"]), **fields)
        except Exception as error:  # noqa: BLE001  # the disk may be full, and files may be anybody's
            _say(f"warning: the end of the run is not in {facts['folder']}: {describe_fault(error)}")
        finally:
            os._exit(0)
    deadline = time.monotonic() + RECORD_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)  # it may not heed it, on a stuck disk; nobody waits for it
            return
        time.sleep(0.02)
