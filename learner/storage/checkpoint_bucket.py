"""Checkpoints in a bucket, which knows no rename: a manifest that is written last names the files that count.

checkpoints/step-000050/manifest.json        writer, size and sha256 of every file, and the attempt they lie in
            step-000050/8c1d2f.../           rank files, state.json: one folder for each attempt to write the step
            best.json                        step and score of the checkpoint that is kept beyond the last k
An attempt that no manifest names was cut short: it is removed at the next start, and once a checkpoint is written.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from common.errors import escape_unprintable
from common.storage.bucket import BucketFolder, hurry
from common.storage.output import Place, WrittenFile
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.manifest import MANIFEST, Manifest, read_manifest

_READERS = 8  # files that are hashed at the same time
_log = logging.getLogger(__name__)


class CheckpointBucket(CheckpointStore):
    """Checkpoints below a folder of a bucket."""

    root: BucketFolder

    def __init__(
        self, folder: BucketFolder, *, keep: int, best_by: str = "accuracy", before_commit: Callable[[], None]
    ) -> None:
        """Remove what a killed run left unfinished.

        Args:
            before_commit: called when all files are there and the manifest is not; an error of it goes to the caller.
                It uploads what must be there before a checkpoint, and makes sure that the run folder is still ours.
        """
        super().__init__(keep=keep, best_by=best_by)
        self.root, self._before_commit = folder, before_commit
        self._remove_unnamed()

    def steps(self) -> list[int]:
        names = (re.fullmatch(rf"step-(\d{{6,}})/{MANIFEST}", name) for name in self.root.list_objects())
        return sorted(int(match[1]) for match in names if match)

    def place(self, step: int) -> BucketFolder:
        return self.root / f"step-{step:06}"

    def files_of(self, manifest: Manifest) -> BucketFolder:
        return self.place(manifest.step) / manifest.attempt

    def require_room(self, nbytes: int = 0) -> None:
        """Do nothing: a bucket has room."""

    def _name_draft(self, step: int) -> BucketFolder:
        return self.place(step) / secrets.token_hex(8)

    def _begin(self, draft: Place) -> None:
        """Do nothing: a bucket has no folders."""

    def _commit(self, draft: Place, manifest: Manifest) -> None:
        self._before_commit()
        self.place(manifest.step).write(MANIFEST, manifest.write().encode())
        self._remove_unnamed()

    def _discard(self, draft: Place) -> None:
        """Remove an attempt that is not the one its manifest names; what is not removed now is at the next start."""
        assert not isinstance(draft, Path)
        with hurry(), suppress(OSError, ValueError):
            try:
                named = self._read_manifest(int(draft.parent.name.removeprefix("step-"))).attempt
            except FileNotFoundError:
                named = ""
            if named != draft.name:
                for name in draft.list_objects():
                    draft.delete(name)

    def _remove(self, step: int) -> None:
        """Remove the manifest first: a kill after it leaves no half checkpoint."""
        folder = self.place(step)
        folder.delete(MANIFEST)
        for name in folder.list_objects():
            folder.delete(name)

    def _remove_unnamed(self) -> None:
        """Remove every attempt that no manifest names. Where a manifest is damaged, leave its step as it is."""
        objects = self.root.list_objects()
        named: dict[int, str | None] = {}
        for step in self.steps():
            try:
                named[step] = self._read_manifest(step).attempt
            except ValueError as error:
                _log.warning("%s", escape_unprintable(f"checkpoint {self.place(step)} is not sound: {error}"))
                named[step] = None
        for name in objects:
            found = re.fullmatch(r"step-(\d{6,})/([0-9a-f]+)/.+", name)
            if found and named.get(int(found[1]), "") not in (None, found[2]):
                self.root.delete(name)

    def _read(self, name: str) -> bytes:
        return self.root.read(name)

    def _write(self, name: str, text: str) -> None:
        self.root.write(name, text.encode())

    def _read_manifest(self, step: int) -> Manifest:
        manifest = read_manifest(self.place(step).read(MANIFEST), step)
        if not manifest.attempt:
            raise ValueError(f"{MANIFEST} names no attempt")
        return manifest

    def _find_fault(self, manifest: Manifest) -> str | None:
        folder = self.files_of(manifest)
        there = folder.list_objects()
        for file in manifest.files:
            if file.name not in there:
                return f"{file.name} is missing"
            if there[file.name].bytes != file.bytes:
                return f"{file.name} has {there[file.name].bytes} bytes instead of {file.bytes}"

        def is_damaged(file: WrittenFile) -> bool:
            return folder.hash_object(file.name) != file.sha256

        with ThreadPoolExecutor(_READERS) as pool:
            for file, damaged in zip(manifest.files, pool.map(is_damaged, manifest.files), strict=True):
                if damaged:
                    return f"{file.name} is damaged: its sha256 is not the one it was written with"
        return None

    def _explain(self, error: Exception, draft: Place, estimate: int) -> str | None:
        return str(error) if isinstance(error, OSError) else None
