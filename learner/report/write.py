"""Write the report: the page of one run, or of several side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from common.errors import RunFolderError, raise_as

PAGE = "report.html"
MOST_RUNS = 24


def write_report(folders: Sequence[Path], out: Path | None = None, *, seconds: float = math.inf) -> Path:
    """Write the page of one or several run folders, into the first of them unless `out` says where.

    Args:
        seconds: no figure is begun after this time; the page names those it lacks.

    Raises:
        RunFolderError: a folder holds no run, there are too many, or the page cannot be written.
    """
    from learner.report.data import label_runs, read_run
    from learner.report.figures import Drawing
    from learner.report.page import render_page
    from learner.storage.files import replace_text

    out = folders[0] / PAGE if out is None else _choose_file(out)
    drawing = Drawing(until=time.monotonic() + seconds, left_out=[])
    if len(folders) > MOST_RUNS:
        raise RunFolderError(
            "too many runs for one page", got=f"{len(folders)} runs", remedy=f"name at most {MOST_RUNS}"
        )
    runs = []
    for folder, label in zip(folders, label_runs(folders), strict=True):
        with raise_as(
            RunFolderError, f"run folder {folder} cannot be read", remedy="check the path, and who may read it"
        ):
            runs.append(read_run(folder, label))
    page = render_page(runs, drawing, made=datetime.now().astimezone())
    with raise_as(RunFolderError, f"the report {out} cannot be written", remedy="name another file with --out"):
        replace_text(out, page)
    return out


def _choose_file(out: Path) -> Path:
    """Return the file of the page, in `out` if that is a folder. Raises RunFolderError for any other file."""
    remedy = "name another file with --out"
    with raise_as(RunFolderError, f"the report {out} cannot be written", remedy=remedy):
        file = out / PAGE if out.is_dir() else out
        if not file.exists():
            return file
        if file.is_file():
            with file.open("rb") as page:
                start = page.read(1000).lstrip().lower()
            if not start or start.startswith((b"<!doctype html", b"<html")):
                return file
    raise RunFolderError(f"the report {file} would replace another file", got="no HTML page", remedy=remedy)
