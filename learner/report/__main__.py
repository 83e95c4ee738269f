"""`python -m learner.report RUN… [--out FILE]`: write the page of a run, or of several runs side by side.

The page is one file without scripts. It fetches nothing, and no text of a run can become markup in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.command import read_path, run_command, say
from common.storage.bucket import is_url
from learner.report.write import PAGE, write_report
from learner.storage.run_bucket import bring_run, publish_page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.report",
        description="Write the report of a run as one HTML page, or compare several runs on one.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, as runs/latest or s3://bucket/run; several are compared"
    )
    parser.add_argument(
        "--out", type=read_path, metavar="FILE", help=f"the page to write; default: {PAGE} in the first run folder"
    )
    with run_command() as command:
        words = parser.parse_args(argv)
        page = _report(words.runs, words.out)
        command.outlive_output()
        say(page)
    return command.exit_code


def _report(runs: Sequence[str], out: Path | None) -> str:
    """Write the page and return where it is. Runs in buckets are brought to this host first."""
    with tempfile.TemporaryDirectory(prefix="rollcall-") as scratch:
        folders = [bring_run(run, Path(scratch, str(number))) for number, run in enumerate(runs)]
        page = write_report(folders, out)
        if out is None and is_url(runs[0]):
            return publish_page(runs[0], page)
        return str(page)


if __name__ == "__main__":
    sys.exit(main())
