"""`python -m learner.audit RUN`: check what a run left behind. With two runs: say where they part.

One line for each violation. Exit codes: 0 all is well, or the runs do not part; 1 a violation, or they do; 2 refused.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.command import FAILED, run_command, say
from learner.audit.compare import find_parting
from learner.audit.rules import find_violations
from learner.audit.run_record import RunRecord, read_record
from learner.storage.run_bucket import bring_run
from learner.tracking.books import BOOKS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.audit",
        description="Check what a run left behind, or say at which step and group two runs part.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, as runs/latest or s3://bucket/run")
    parser.add_argument("other", metavar="RUN", nargs="?", help="a second run, to compare with the first")
    failed = False
    with run_command() as command:
        words = parser.parse_args(argv)
        with tempfile.TemporaryDirectory(prefix="rollcall-") as scratch:
            runs = [words.run, *([words.other] if words.other else [])]
            records = [read_record(bring_run(run, Path(scratch, str(number)))) for number, run in enumerate(runs)]
            lines = _compare(*records) if words.other else _check(records[0])
        failed = bool(lines)
        for line in lines:
            say(line)
    return command.exit_code or (FAILED if failed else 0)


def _check(record: RunRecord) -> list[str]:
    """Print a table, and return a line for each violation."""
    for name, value in describe(record).items():
        say(f"{name:12} {value}")
    return [f"violation: {line}" for line in find_violations(record)]


def _compare(one: RunRecord, other: RunRecord) -> list[str]:
    """Return the line that says where two runs part; print that they do not."""
    parting = find_parting(one, other)
    if parting is None:
        say(f"the runs do not part: {len(one.steps)} steps are the same")
        return []
    return [f"the runs part: {parting}"]


def describe(record: RunRecord) -> dict[str, str]:
    """Return the figures of a run by name."""
    groups = [group for row in record.books for group in row.groups]
    last = record.books[-1] if record.books else None
    lags = [
        row.step - group.version
        for row in record.books
        for group in row.groups
        if group.origin == "sampled" and group.version is not None
    ]
    loads = [one for row in record.books for one in row.loads]
    outcome = "running" if record.running else str(record.summary["outcome"]) if record.summary else "without an end"
    here = all(row["host"] == socket.gethostname() for row in record.starts)
    size = (record.folder / BOOKS).stat().st_size
    return {
        "run": f"{record.folder}, {outcome}",
        "steps": f"{len(record.steps)} of {record.config.steps}, {len(record.starts)} starts",
        "groups": f"{last.dispatched} dispatched, {last.trained} trained, {last.dropped} dropped, "
        f"{sum(last.pending)} pending"
        if last
        else "none",
        "lag": f"{max(lags, default=0)} steps at most, {record.config.rollout.max_lag} allowed",
        "engines": f"{len({one.engine for one in loads})}, {len(loads)} loads of weights",
        "books": f"{size / max(1, len(record.books)):.0f} bytes a step, {size / max(1, len(groups)):.0f} a group",
        "survivors": "looked for on this host" if here else "not looked for: the run was on another host",
    }


if __name__ == "__main__":
    sys.exit(main())
