"""Checkpoint folders that are whole or absent: written under another name, hashed, synced, renamed.

checkpoints/step-000050/         rank files, state.json, manifest.json (writer, size and sha256 of every other file)
            .writing-000100/     unfinished; what a killed run left of it is removed at the next start
            .removing-000000/    half removed
            best.json            step and score of the checkpoint that is kept beyond the last k, and its measure
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.errors import CheckpointError, escape_unprintable
from common.output import WriteReport, describe_file, find_unseen, name_rank
from learner.storage.files import replace_text, sync_folder

FORMAT = 2  # 1 did not say which rank wrote a file
_MANIFEST = "manifest.json"
_DRIVER = "driver"  # who wrote what no rank did
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
_PROBE = 1 << 20  # bytes

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Draft:
    """A checkpoint that is being written."""

    folder: Path  # to write into, from any process
    reports: Sequence[WriteReport] = ()  # of the ranks, in rank order; files of nobody's report are the driver's


class CheckpointStore:
    """The checkpoints of one run. The lock of the run folder makes it their only writer."""

    def __init__(self, folder: Path, *, keep: int, best_by: str = "accuracy") -> None:
        """Remove what a killed run left unfinished.

        Args:
            keep: newest checkpoints kept.
            best_by: the measure of scores. The best by another measure is kept no longer than others.
        """
        self.folder, self._keep, self._best_by = folder, keep, best_by
        self._unsound: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        for left in (*folder.glob(".writing-*"), *folder.glob(".removing-*")):
            shutil.rmtree(left)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint folder, sound or not, oldest first."""
        names = (re.fullmatch(r"step-(\d{6,})", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06}"

    @contextmanager
    def write_checkpoint(self, step: int, *, score: float | None = None, estimate: int) -> Iterator[Draft]:
        """Give a draft to write and to report in; at the end of the block it becomes checkpoint `step`.

        Args:
            score: of these weights by `best_by`, if known; the best is kept however old it is.
            estimate: bytes it will take; the size of the last checkpoint counts where it is the larger.

        Raises:
            CheckpointError: no room, the volume failed, or a file that a rank reported is not in the folder. Nothing
                is left of the attempt, and nothing else changed.
        """
        self.require_room(estimate)
        aside = self.folder / f".writing-{step:06}"
        try:
            aside.mkdir()
            draft = Draft(aside)
            yield draft
            _seal(draft, step)
            self._move_in(aside, step)
            if score is not None and score > self.best_score():
                best = {"step": step, "by": self._best_by, "score": score}
                replace_text(self.folder / "best.json", json.dumps(best) + "\n")
            self._prune(step)
        except Exception as error:
            if not _is_storage_trouble(error, aside):
                raise
            raise CheckpointError(
                f"checkpoint {step} could not be written",
                got=f"{_last_line(error)}; {_mb(_free_bytes(self.folder))} free, {_mb(self._needed(estimate))} needed",
                remedy=f"make room on the volume of {self.folder}",
            ) from error
        finally:  # Ctrl-C too leaves nothing behind
            shutil.rmtree(aside, ignore_errors=True)

    def find_newest(self) -> Path | None:
        """Find the newest sound checkpoint, with each of its files verified; None if there is no checkpoint at all.

        Newer ones that are not sound are logged, and go when the next checkpoint is written.

        Raises:
            CheckpointError: there are checkpoints and not one is sound. To start afresh over them is not for us to say.
        """
        faults: list[str] = []
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                verify(path)
            except CheckpointError as error:
                _log.warning("%s", escape_unprintable(f"checkpoint {path} is passed over: {error.got}"))
                faults.append(f"{path.name}: {error.got}")
                self._unsound.add(path)
                continue
            return path
        if faults:
            raise CheckpointError(
                f"none of the {len(faults)} checkpoints is sound",
                got="; ".join(faults),
                remedy=f"restore one, or remove {self.folder} to start this run afresh",
            )
        return None

    def find_best(self) -> int | None:
        """Return the step of the best checkpoint; None if there is none."""
        step = self._best().get("step")
        return step if isinstance(step, int) and self.path(step).is_dir() else None

    def best_score(self) -> float:
        """Return the score of the best checkpoint; -inf if there is none."""
        return float(self._best()["score"]) if self.find_best() is not None else float("-inf")

    def has_room(self, nbytes: int = 0) -> bool:
        """Return whether `nbytes`, or the size of the last checkpoint if that is larger, fit with a tenth to spare."""
        return _free_bytes(self.folder) >= self._needed(nbytes)

    def require_room(self, nbytes: int = 0) -> None:
        """Raise CheckpointError, with the numbers, unless `has_room`."""
        if not self.has_room(nbytes):
            raise CheckpointError(
                "no room for a checkpoint",
                got=f"{_mb(_free_bytes(self.folder))} free, {_mb(self._needed(nbytes))} needed",
                remedy=f"make room on the volume of {self.folder}, or lower checkpoint.keep",
            )

    def _needed(self, nbytes: int) -> int:
        return max(nbytes, self._last_bytes()) * 11 // 10

    def _last_bytes(self) -> int:
        steps = self.steps()
        return sum(path.stat().st_size for path in _files(self.path(steps[-1]))) if steps else 0

    def _best(self) -> dict[str, Any]:
        try:
            best = parse_json((self.folder / "best.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return best if isinstance(best, dict) and best.get("by") == self._best_by else {}

    def _move_in(self, aside: Path, step: int) -> None:
        if self.path(step).exists():  # of a run that was resumed before it, or unsound
            self._remove(step)
        aside.rename(self.path(step))
        sync_folder(self.folder)
        self._unsound.discard(self.path(step))

    def _prune(self, step: int) -> None:
        """Keep the last k and the best; remove the unsound, and later steps, which a resumed run takes again."""
        good = [old for old in self.steps() if old <= step and self.path(old) not in self._unsound]
        kept = {*good[-self._keep :], self.find_best()}
        for old in self.steps():
            if old not in kept or old > step:
                self._remove(old)

    def _remove(self, step: int) -> None:
        """Rename, then remove: a kill in between leaves no half checkpoint."""
        away = self.folder / f".removing-{step:06}"
        self.path(step).rename(away)
        shutil.rmtree(away)


def verify(path: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: `got` names the first thing that is wrong.
    """
    try:
        fault = _find_fault(path)
    except OSError as error:
        fault = f"it cannot be read: {error}"
    if fault:
        raise CheckpointError(
            f"checkpoint {path} is not sound", got=fault, remedy="resume from another one (resume=auto finds it)"
        )


def _find_fault(path: Path) -> str | None:
    if not (path / _MANIFEST).is_file():
        return f"{_MANIFEST} is missing"
    try:
        manifest = parse_json((path / _MANIFEST).read_bytes())
        label = f"format {manifest['format']}, step {manifest['step']:06}"
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        wrote = {entry["by"] for entry in manifest["files"].values()} if manifest["format"] == FORMAT else set()
        ranks = range(int(manifest.get("ranks", 0)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} is damaged: {error!r}"
    if label != f"format {FORMAT}, step {path.name.removeprefix('step-')}":
        return f"{_MANIFEST} is of {label}"
    writers = {_DRIVER, *(map(name_rank, ranks) if ranks else ["any rank"])}
    if odd := sorted(writers ^ wrote):
        return f"it holds no file of {odd[0]}" if odd[0] in writers else f"it holds a file of {odd[0]}"
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if describe_file(path, name).sha256 != digest:
            return f"{name} is damaged: its sha256 is not the one it was written with"
    return None


def _seal(draft: Draft, step: int) -> None:
    """Write the manifest of what ranks reported and the driver sees, and sync every folder.

    Raises OSError, or CheckpointError where a rank's file is not here.
    """
    folder = draft.folder
    silent = [report.by for report in draft.reports if not report.files] or ([] if draft.reports else ["any rank"])
    if unseen := f"no file of {silent[0]}" if silent else find_unseen(folder, draft.reports):
        raise CheckpointError(
            f"checkpoint {step} lacks a file of a rank",
            got=unseen,
            remedy="give run_dir a folder that every host mounts",
        )
    of_ranks = {file.name: (report.by, file) for report in draft.reports for file in report.files}
    own = [str(path.relative_to(folder)) for path in sorted(_files(folder))]
    of_driver = {name: (_DRIVER, describe_file(folder, name)) for name in own if name not in of_ranks}
    entries = {
        name: {"by": writer, "bytes": file.bytes, "sha256": file.sha256}
        for name, (writer, file) in (of_driver | of_ranks).items()
    }
    manifest = {"format": FORMAT, "step": step, "ranks": len(draft.reports), "files": entries}
    replace_text(folder / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for inside in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync_folder(inside)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _is_storage_trouble(error: Exception, folder: Path) -> bool:
    """Whether the volume is to blame. torch and safetensors hide the OSError: RuntimeError, text only."""
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return True
    return any(os.strerror(code) in str(error) for code in _STORAGE) or not _takes_bytes(folder)


def _takes_bytes(folder: Path) -> bool:
    try:
        with (folder / ".probe").open("wb") as file:
            file.write(bytes(_PROBE))
    except OSError:
        return False
    return True


def _last_line(error: Exception) -> str:
    """Of an error in another process, the line that says what it was."""
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _free_bytes(folder: Path) -> int:
    volume = os.statvfs(folder)
    return volume.f_bavail * volume.f_frsize


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"
