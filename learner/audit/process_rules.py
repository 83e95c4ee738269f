"""Rules on the processes of a run: how long they were silent, how they ended, and that they did."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import pairwise

import psutil

from learner.audit.run_record import Row, RunRecord

PIDS = {"start": "driver", "engine_up": "engine", "reward_worker_up": "reward worker", "rank_up": "rank"}
LINGER_S = 5.0  # that a process may take to end
SLACK_S = 1.0  # between the start of a process and the event that names it


def check_pace(record: RunRecord) -> Iterator[str]:
    """Between two rows or events of a start there is no gap longer than the deadlines of the run allow."""
    for number, events in enumerate(record.attempts):
        marks = [(float(row["monotonic"]), str(row["kind"])) for row in events if row["kind"] != "retry"]
        marks += [(row.monotonic, f"step {row.step}") for row in record.books if row.attempt == number]
        longest = float(events[0]["longest_s"])
        for (one, what), (other, then) in pairwise(sorted(marks)):
            if other - one > longest:
                yield f"start {number}: {other - one:.0f} s between {what} and {then}, {longest:.0f} s are allowed"
        begun, last = float(events[0]["monotonic"]), marks[0][0]
        for row in record.books:
            if row.attempt == number:
                if row.monotonic < max(begun, last) - 0.001:
                    yield f"step {row.step}: it ended before what came before it"
                last = row.monotonic


def check_end(record: RunRecord) -> Iterator[str]:
    """A run that is over says how it ended."""
    if record.running or not record.attempts:
        return
    ends = [row for row in record.attempts[-1] if row["kind"] == "end"]
    if not ends:
        yield f"start {len(record.attempts) - 1} has no end"
    elif record.summary is None:
        yield "there is no summary.json"
    elif ends[-1].get("outcome") != record.summary["outcome"]:
        yield f"summary.json says {record.summary['outcome']}, the last event {ends[-1].get('outcome')}"


def check_survivors(record: RunRecord) -> Iterator[str]:
    """No process of the last start is alive after the end of the run, or LINGER_S later, on this host.

    An earlier start whose parent was killed leaves its processes to Ray, where they do not end with their raylet.
    """
    if record.running:
        return
    alive: dict[psutil.Process, str] = {}
    for events in record.attempts[-1:]:
        if events[0]["host"] != socket.gethostname():
            continue
        for row in events:
            what = PIDS.get(row["kind"])
            process = _find_process(row, is_driver=what == "driver") if what else None
            if process:
                names = [str(row[key]) for key in ("engine", "worker", "rank") if key in row]
                alive[process] = " ".join([str(what), *names, f"(pid {process.pid}) is still alive"])
    _, left = psutil.wait_procs(alive, timeout=LINGER_S)
    yield from (said for process, said in alive.items() if process in left)


def _find_process(row: Row, *, is_driver: bool) -> psutil.Process | None:
    """Return the process that an event names; None where it has ended, whoever has its number now or on this host."""
    try:
        process = psutil.Process(int(row["pid"]))
        if process.create_time() > float(row["wall"]) + SLACK_S or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process if is_driver or process.cmdline()[0].startswith("ray::") else None
    except (psutil.Error, IndexError):
        return None
