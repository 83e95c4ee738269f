"""The files of one rank: its share of a checkpoint, written and read, and the exported model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.storage.output import (
    Place,
    WriteReport,
    WrittenFile,
    describe_folder,
    name_rank,
    open_output,
    read_folder,
    write_folder,
)
from learner.model.load import require_base
from learner.trainer.rng import read_random_states, set_random_states


def save_rank(engine: Any, place: Place, *, rank: int, base: Mapping[str, Any]) -> WriteReport:
    """Write what this rank trains, its optimizer, the step counter and random states to `place`. A collective.

    Returns what was written on this host, with the error of a write that failed.
    """
    from learner.trainer import zero

    output = open_output(place)
    own = {"base": base, "random": read_random_states()}
    error = zero.save(engine, output, besides={f"rank-{rank}.pt": own})
    return WriteReport(by=name_rank(rank), files=tuple(output.files), error=error)


def load_rank(engine: Any, place: Place, reports: Sequence[WriteReport], *, rank: int, base: Mapping[str, Any]) -> None:
    """Put engine and random states back to where `save_rank` was called. A collective.

    Args:
        reports: of all ranks; needed where the place is a bucket, from which a rank brings what it reads.

    Raises CheckpointError when the model it goes with is not the one this run started from, and for files that no run
    wrote: nothing in them is run.
    """
    from learner.trainer import zero

    own_name, first = name_rank(rank), name_rank(0)
    needed = [
        file
        for report in reports
        for file in report.files
        if report.by == own_name or (report.by == first and file.name.endswith(zero.SHARED_FILE))
    ]
    with zero.refuse_strangers(str(place)), read_folder(place, needed) as folder:
        own = zero.read_file(folder / f"rank-{rank}.pt")
        require_base(base, own["base"], folder)
        zero.load(engine, folder)
        set_random_states(own["random"])


def export_rank(write: Callable[[Path], None], place: Place, *, rank: int) -> WriteReport:
    """Let `write` write the exported model to `place`, from rank 0; the others only help to gather.

    Returns what is there as rank 0 sees it, or why that failed; nothing from the other ranks.
    """
    written: tuple[WrittenFile, ...] = ()
    try:
        with write_folder(place) as folder:
            write(folder)
            if rank == 0:
                written = describe_folder(folder)
    except OSError as error:
        return WriteReport(by=name_rank(rank), files=(), error=error)
    return WriteReport(by=name_rank(rank), files=written)
