"""Entry point: `python -m learner.report RUN… [--out FILE]`: one page of a run, or several runs side by side.

The page is one file: no script, nothing fetched, safe whatever stands in labels, completions and events.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import run_command
from learner.report.write import PAGE, write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m learner.report", description="Write the page of a run.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; several are compared")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"default: {PAGE} in the first run folder")
    words = parser.parse_args(argv)
    return run_command(lambda: print(write_report(words.runs, words.out)))


if __name__ == "__main__":
    sys.exit(main())
