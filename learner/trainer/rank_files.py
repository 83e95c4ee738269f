"""The files of one rank: its share of a checkpoint, written and read, and the exported model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import describe_fault
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
from learner.model.reference import MovingReference
from learner.trainer.recovery.packing import pack_tensors, unpack_tensors
from learner.trainer.rng import read_random_states, set_random_states


def save_rank(
    engine: Any, place: Place, *, rank: int, base: Mapping[str, Any], moving: MovingReference | None
) -> WriteReport:
    """Write what this rank trains, its optimizer, the step counter and random states to `place`. A collective.

    A reference that moves is written too: by every rank its partition under ZeRO-3, else all of it by the first.

    Returns what was written on this host, with the error of a write that failed.
    """
    from learner.trainer import zero

    output = open_output(place)
    besides: dict[str, Any] = {_name_own(rank): {"base": base, "random": read_random_states()}}
    if moving and _find_reference(engine, rank) == rank:
        besides[_name_reference(rank)] = moving.state()
    error = zero.save(engine, output, besides=besides)
    return WriteReport(by=name_rank(rank), files=tuple(output.files), error=error)


def load_rank(
    engine: Any,
    place: Place,
    reports: Sequence[WriteReport],
    *,
    rank: int,
    base: Mapping[str, Any],
    moving: MovingReference | None,
) -> None:
    """Put engine, reference and random states back to where `save_rank` was called. A collective.

    Args:
        reports: of all ranks; needed where the place is a bucket, from which a rank brings what it reads.

    Raises CheckpointError when the model it goes with is not the one this run started from, and for files that no run
    wrote: nothing in them is run.
    """
    from learner.trainer import zero

    own_name, first = name_rank(rank), name_rank(0)
    reference = _name_reference(_find_reference(engine, rank))
    needed = [
        file
        for report in reports
        for file in report.files
        if report.by == own_name or (report.by == first and file.name.endswith((zero.SHARED_FILE, reference)))
    ]
    with zero.refuse_strangers(str(place)), read_folder(place, needed) as folder:
        own = zero.read_file(folder / _name_own(rank))
        require_base(base, own["base"], folder)
        zero.load(engine, folder)
        if moving:
            moving.restore(zero.read_file(folder / reference, map_location="cpu"))
        set_random_states(own["random"])


def copy_rank(engine: Any, *, rank: int, moving: MovingReference | None) -> dict[str, Any]:
    """Return what `save_rank` would write. A collective. Tensors of a CPU are copied by Ray, as it stores the value."""
    from learner.trainer import zero

    files = zero.capture(engine)
    files[_name_own(rank)] = {"random": read_random_states()}
    if moving and _find_reference(engine, rank) == rank:
        files[_name_reference(rank)] = moving.state()
    return {name: pack_tensors(state) for name, state in files.items()}


def restore_rank(
    engine: Any, copies: Sequence[Mapping[str, Any]], *, rank: int, moving: MovingReference | None
) -> None:
    """Put engine, reference and random states back to where `copy_rank` was called, in another process. A collective.

    Args:
        copies: of this rank, and of rank 0 where it holds what all read.
    """
    from learner.trainer import zero

    files: dict[str, Any] = {}
    for packed in copies:
        files |= {name: unpack_tensors(state) for name, state in packed.items() if name not in files}
    own = files.pop(_name_own(rank))
    zero.load_captured(engine, files)
    if moving:
        moving.restore(files[_name_reference(_find_reference(engine, rank))])
    set_random_states(own["random"])


def _find_reference(engine: Any, rank: int) -> int:
    """Return the rank that writes the reference which this one reads."""
    return rank if engine.zero_optimization_stage() == 3 else 0


def _name_own(rank: int) -> str:
    return f"rank-{rank}.pt"


def _name_reference(rank: int) -> str:
    return f"reference-{rank}.pt"


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
    except Exception as error:  # noqa: BLE001  # safetensors has errors of its own for a full disk
        fault = error if isinstance(error, OSError) else OSError(describe_fault(error))
        return WriteReport(by=name_rank(rank), files=(), error=fault)
    return WriteReport(by=name_rank(rank), files=written)
