"""`python -m learner.report RUN… [--out FILE]`: write the page of a run, or of several runs side by side.

The page is one file without scripts. It fetches nothing, and no text of a run can become markup in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.command import run_command, say
from learner.report.write import PAGE, write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.report",
        description="Write the report of a run as one HTML page, or compare several runs on one.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder, as runs/latest; several are compared"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the page to write; default: {PAGE} in the first run folder"
    )
    words = parser.parse_args(argv)
    with run_command() as command:
        say(write_report(words.runs, words.out))
    return command.exit_code


if __name__ == "__main__":
    sys.exit(main())
