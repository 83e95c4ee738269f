"""Checkpoint folders that are whole or absent: written under another name, synced, renamed.

checkpoints/step-000050/         rank files, state.json, manifest.json (writer, size and sha256 of every other file)
            .writing-000100/     unfinished; what a killed run left of it is removed at the next start
            .removing-000000/    half removed
            .replaced-000050/    the one before at that step; back in its place if a kill came in between
            best.json            step and score of the checkpoint that is kept beyond the last k, and its measure
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from common.errors import CheckpointError, RollcallError, describe_cause
from common.storage.output import Place, describe_file
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.files import replace_text, sync_folder
from learner.storage.manifest import MANIFEST, Manifest, read_manifest

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
_PROBE = 1 << 20  # bytes


class CheckpointFolder(CheckpointStore):
    """Checkpoints in a folder that every host mounts."""

    root: Path

    def __init__(self, folder: Path, *, keep: int, best_by: str = "accuracy") -> None:
        """Make the folder, and remove what a killed run left unfinished in it."""
        super().__init__(keep=keep, best_by=best_by)
        self.root = folder
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".replaced-*"):
            step = self.root / old.name.replace(".replaced-", "step-")
            old.rename(folder / old.name.replace(".replaced-", ".removing-") if step.exists() else step)
        for left in (*folder.glob(".writing-*"), *folder.glob(".removing-*")):
            shutil.rmtree(left)

    def steps(self) -> list[int]:
        names = (re.fullmatch(r"step-(\d{6,})", path.name) for path in self.root.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def place(self, step: int) -> Path:
        return self.root / f"step-{step:06}"

    def files_of(self, manifest: Manifest) -> Path:
        return self.place(manifest.step)

    def has_room(self, nbytes: int = 0) -> bool:
        """Return whether `nbytes`, or the size of the last checkpoint if that is larger, fit with a tenth to spare."""
        return _free_bytes(self.root) >= self._needed(nbytes)

    def require_room(self, nbytes: int = 0) -> None:
        if not self.has_room(nbytes):
            raise CheckpointError(
                "no room for a checkpoint",
                got=self._describe_room(nbytes),
                remedy=f"make room on the volume of {self.root}, or lower checkpoint.keep",
            )

    def _needed(self, nbytes: int) -> int:
        steps = self.steps()
        last = sum(path.stat().st_size for path in self.place(steps[-1]).rglob("*") if path.is_file()) if steps else 0
        return max(nbytes, last) * 11 // 10

    def _describe_room(self, nbytes: int) -> str:
        return f"{_mb(_free_bytes(self.root))} free, {_mb(self._needed(nbytes))} needed"

    def _name_draft(self, step: int) -> Path:
        return self.root / f".writing-{step:06}"

    def _begin(self, draft: Place) -> None:
        assert isinstance(draft, Path)
        draft.mkdir()

    def _commit(self, draft: Place, manifest: Manifest) -> None:
        assert isinstance(draft, Path)
        replace_text(draft / MANIFEST, manifest.write() + "\n")
        for inside in (*(path for path in draft.rglob("*") if path.is_dir()), draft):
            sync_folder(inside)
        place, old = self.place(manifest.step), self.root / f".replaced-{manifest.step:06}"
        if place.exists():  # of a run that was resumed before it, or unsound
            place.rename(old)
        draft.rename(place)
        sync_folder(self.root)
        shutil.rmtree(old, ignore_errors=True)

    def _discard(self, draft: Place) -> None:
        assert isinstance(draft, Path)
        shutil.rmtree(draft, ignore_errors=True)

    def _remove(self, step: int) -> None:
        """Rename, then remove: a kill in between leaves no half checkpoint."""
        away = self.root / f".removing-{step:06}"
        self.place(step).rename(away)
        shutil.rmtree(away)

    def _read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def _write(self, name: str, text: str) -> None:
        replace_text(self.root / name, text)

    def _read_manifest(self, step: int) -> Manifest:
        file = self.place(step) / MANIFEST
        if not file.is_file():
            raise ValueError(f"{MANIFEST} is missing")
        return read_manifest(file.read_bytes(), step)

    def _find_fault(self, manifest: Manifest) -> str | None:
        folder = self.files_of(manifest)
        for file in manifest.files:
            path = folder / file.name
            if not path.is_file():
                return f"{file.name} is missing"
            if path.stat().st_size != file.bytes:
                return f"{file.name} has {path.stat().st_size} bytes instead of {file.bytes}"
            if describe_file(folder, file.name).sha256 != file.sha256:
                return f"{file.name} is damaged: its sha256 is not the one it was written with"
        return None

    def _explain(self, error: Exception, draft: Place, estimate: int) -> str | None:
        """torch and safetensors hide the OSError of a full disk: RuntimeError, text only."""
        assert isinstance(draft, Path)
        trouble = isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
        if trouble or any(os.strerror(code) in str(error) for code in _STORAGE) or not _takes_bytes(draft):
            return f"{_last_line(error)}; {self._describe_room(estimate)}"
        return None


def _takes_bytes(folder: Path) -> bool:
    try:
        with (folder / ".probe").open("wb") as file:
            file.write(bytes(_PROBE))
    except OSError:
        return False
    return True


def _last_line(error: Exception) -> str:
    """Of an error in another process, the line that says what it was; of one of ours what was found."""
    if isinstance(error, RollcallError):
        return describe_cause(error)
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _free_bytes(folder: Path) -> int:
    volume = os.statvfs(folder)
    return volume.f_bavail * volume.f_frsize


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"
