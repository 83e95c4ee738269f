"""A run folder in a bucket: reached, locked, and copied from a folder of this host."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.command import read_path
from common.errors import RunFolderError
from common.shared_folder import cache_home
from common.storage.bucket import BucketFolder, hurry, is_url
from common.storage.output import FolderOutput
from learner.storage.bucket_lock import BucketLock
from learner.storage.mirror import Mirror, bring_small_files

_HOME = ".home"  # names the copy on this host, which one process at a time can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBucket:
    """The bucket's side of an open run folder."""

    place: BucketFolder
    mirror: Mirror
    lock: BucketLock
    copy: Path

    @staticmethod
    def choose_copy(place: BucketFolder) -> Path:
        """Return the folder of this host that holds the small files of a run in a bucket."""
        return _name_copy("runs", place)

    @staticmethod
    def probe(place: BucketFolder) -> None:
        """Write, read and delete an object. Raises RunFolderError where that fails, or takes too long."""
        if fault := place.probe():
            raise RunFolderError(
                "the bucket of run_dir cannot be used",
                got=fault,
                remedy="check the name of the bucket, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )

    @classmethod
    def open(cls, place: BucketFolder, copy: Path, *, resume: bool) -> Self:
        """Lock the folder in the bucket, and make the copy on this host hold what is there.

        Raises:
            RunFolderError: a live run holds it, it is not empty and the run is none to resume, or it does not answer.
        """
        try:
            lock = BucketLock(place, home=_name_home(copy))
        except OSError as error:
            raise _make_unreadable_error(place, error) from error
        try:
            if not resume:
                _refuse_strangers(place)
            _empty(copy)
            mirror = Mirror(copy, place)
            mirror.bring_down()
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError):
                raise _make_unreadable_error(place, error) from error
            raise
        return cls(place=place, mirror=mirror, lock=lock, copy=copy)

    def push(self) -> str | None:
        """Begin to upload what changed, unless another run took the lock. Return why the upload before failed, once."""
        return None if self.lock.lost else self.mirror.push()

    def flush(self) -> None:
        """Upload what changed, before this returns.

        Raises OSError, or RunFolderError where another run took the lock.
        """
        self.lock.require()
        self.mirror.flush()

    def before_commit(self) -> None:
        """Upload what must be there before a checkpoint is, and make sure that this run still holds the lock.

        Raises OSError, or RunFolderError where another run took it.
        """
        self.flush()
        self.lock.require()

    def holds_checkpoint(self) -> bool:
        """Return whether a checkpoint is in the bucket; False where it does not answer."""
        try:
            return any(name.endswith("/manifest.json") for name in (self.place / "checkpoints").list_objects())
        except OSError:
            return False

    def close(self) -> None:
        """Release the lock, and empty the copy on this host unless the bucket lacks something of it."""
        with hurry():
            with suppress(OSError, RunFolderError):
                self.flush()
                _empty(self.copy)
            self.lock.release()


def _refuse_strangers(place: BucketFolder) -> None:
    if held := sorted(name for name in place.list_objects() if not name.startswith(".")):
        raise RunFolderError(
            "the run folder is not empty",
            got=f"{place} holds {', '.join(held[:5])}{' and more' if len(held) > 5 else ''}",
            remedy="pass resume=auto to go on with that run, or give this one another run_dir",
        )


def bring_run(run: str, scratch: Path) -> Path:
    """Return the folder of a run: itself, or below `scratch` a copy of the small files of a run in a bucket.

    Raises RunFolderError where the bucket does not answer.
    """
    if not is_url(run):
        return read_path(run)
    place = BucketFolder.parse(run)
    folder = scratch / place.name
    try:
        brought = bring_small_files(place, folder)
    except OSError as error:
        raise _make_unreadable_error(place, error) from error
    if not brought:
        raise RunFolderError("no run to report on", got=f"nothing is in {place}", remedy="name the URL of a run folder")
    return folder


def publish_page(run: str, page: Path) -> str:
    """Copy a page into the bucket of a run, and return its URL. Raises RunFolderError where the bucket refuses it."""
    place = BucketFolder.parse(run)
    try:
        place.write(page.name, page.read_bytes())
    except OSError as error:
        raise RunFolderError("the report cannot be written", got=error, remedy="name a file with --out") from error
    return str(place / page.name)


def bring_export(run: str) -> Path:
    """Copy configuration and export of a run in a bucket into the cache of this host, and return the run's copy there.

    Raises RunFolderError where the bucket does not answer.
    """
    place = BucketFolder.parse(run)
    folder = _name_copy("exports", place) / place.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for name in place.list_objects():
            if name == "config.yaml" or name.startswith("export/"):
                output = FolderOutput(folder)
                with output.open(name) as file:
                    for chunk in place.read_chunks(name):
                        file.write(chunk)
    except OSError as error:
        raise _make_unreadable_error(place, error) from error
    return folder


def _name_copy(kind: str, place: BucketFolder) -> Path:
    """Return the folder of this host that belongs to a place, always the same one."""
    return cache_home().resolve() / kind / hashlib.sha256(str(place).encode()).hexdigest()[:16]


def _name_home(copy: Path) -> str:
    """Return a name that no other folder on any host has."""
    file = copy / _HOME
    if not file.is_file():
        file.write_text(secrets.token_hex(8))
    return file.read_text()


def _empty(copy: Path) -> None:
    """Remove what another start left; the bucket says what counts."""
    for entry in copy.iterdir():
        if entry.name not in (".lock", _HOME):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _make_unreadable_error(place: BucketFolder, error: OSError) -> RunFolderError:
    return RunFolderError(
        "the run folder cannot be read", got=error, remedy="try again once the server of the bucket answers"
    )
