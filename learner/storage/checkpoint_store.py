"""Checkpoint folders that are whole or absent: written under another name, hashed, synced, renamed.

checkpoints/step-000050/         rank files, state.json, manifest.json (size and sha256 of every other file)
            .writing-000100/     unfinished; what a killed run left of it is removed at the next start
            .removing-000000/    half removed
            best.json            step and score of the checkpoint that is kept beyond the last k, and its measure
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from learner.storage.files import replace_text, sync_folder

FORMAT = 1
_MANIFEST = "manifest.json"
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
_PROBE = 1 << 20  # bytes

_log = logging.getLogger(__name__)


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
    def write_checkpoint(self, step: int, *, score: float | None = None, estimate: int) -> Iterator[Path]:
        """Give a folder to write into, from any process; at the end of the block it becomes checkpoint `step`.

        Args:
            score: of these weights by `best_by`, if known; the best is kept however old it is.
            estimate: bytes it will take; the size of the last checkpoint counts where it is the larger.

        Raises:
            CheckpointError: no room, or the volume failed. Nothing is left of the attempt, and nothing else changed.
        """
        self.require_room(estimate)
        aside = self.folder / f".writing-{step:06}"
        try:
            aside.mkdir()
            yield aside
            _seal(aside, step)
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
                _log.warning("checkpoint %s is passed over: %s", path, error.got)
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
            best = json.loads((self.folder / "best.json").read_bytes())
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
        manifest = json.loads((path / _MANIFEST).read_bytes())
        label = f"format {manifest['format']}, step {manifest['step']:06}"
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} is damaged: {error!r}"
    if label != f"format {FORMAT}, step {path.name.removeprefix('step-')}":
        return f"{_MANIFEST} is of {label}"
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _sha256(file) != digest:
            return f"{name} is damaged: its sha256 is not the one it was written with"
    return None


def _seal(folder: Path, step: int) -> None:
    """Hash and sync every file, write the manifest, sync every folder. Raises OSError."""
    files = sorted(_files(folder))
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_synced_sha256, files))
    entries = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, digests, strict=True)
    }
    manifest = {"format": FORMAT, "step": step, "files": entries}
    replace_text(folder / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for inside in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync_folder(inside)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _synced_sha256(file: Path) -> str:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return _sha256(file)


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
