"""Entry point: `python -m learner.report RUN… [--out FILE]`: one page of a run, or several runs side by side.

The page is one file: no script, nothing fetched, safe whatever stands in labels, completions and events.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from common.errors import RollcallError, RunFolderError

PAGE = "report.html"
MOST_RUNS = 24


def write_report(folders: Sequence[Path], out: Path | None = None, *, seconds: float = math.inf) -> Path:
    """Write the page of one or several run folders, into the first of them unless `out` says where.

    Args:
        seconds: after which no further figure is begun; the page then names those it lacks.

    Raises:
        RunFolderError: one of them is no run, there are too many, or the page cannot be written.
    """
    from learner.files import replace_text
    from learner.report_data import labels, read_run
    from learner.report_figures import Drawing
    from learner.report_page import render

    drawing = Drawing(until=time.monotonic() + seconds, left_out=[])
    if len(folders) > MOST_RUNS:
        raise RunFolderError(
            "too many runs for one page", got=f"{len(folders)} runs", remedy=f"name at most {MOST_RUNS}"
        )
    runs = [read_run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    page = render(runs, drawing, made=datetime.now().astimezone())
    out = out or folders[0] / PAGE
    try:
        replace_text(out, page)
    except OSError as error:
        raise RunFolderError(
            "the report cannot be written", got=f"{out}: {error}", remedy="say with --out where it can"
        ) from error
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m learner.report", description="Write the page of a run.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; several are compared")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"default: {PAGE} in the first run folder")
    words = parser.parse_args(argv)
    try:
        print(write_report(words.runs, words.out))
    except RollcallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
