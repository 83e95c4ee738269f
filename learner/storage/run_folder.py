"""The folder of one run, or its place in a bucket: chosen, tested for writing, and locked against other runs."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import socket
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Self

import yaml

from common.config.schema import Config
from common.errors import RunFolderError, raise_as
from common.storage.bucket import BucketFolder, is_url
from common.storage.output import Place
from learner.storage.environment import describe_environment, is_ray_package
from learner.storage.files import replace_text
from learner.storage.run_bucket import RunBucket

RUNS = Path("runs")
LONGEST_NAME = 200  # bytes: file systems take 255, and date and number need some
MOST_TRIES = 100
_HIDDEN = {".lock", ".home"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """An open run folder. The driver holds the lock as long as it lives, so a killed run frees it.

    Of a run in a bucket `path` is a folder of this host that is copied there all the time.
    """

    path: Path  # absolute
    step: int | None  # of the checkpoint that `resume` names; None: the newest sound one, if any
    lock: int  # descriptor of the locked file
    made: tuple[Path, ...] = ()  # folders above `path` that were made for it, the nearest first
    bucket: RunBucket | None = None

    @classmethod
    def open(cls, config: Config, *, now: datetime) -> Self:
        """Find or make the folder the configuration asks for, and lock it. Nothing else is written before `begin`.

        Raises:
            RunFolderError: it cannot be made or written, Ray will delete it, a live run holds it, it is not empty and
                `resume` is not set, or `resume` names something that is no run folder or checkpoint.
        """
        made = _list_absent(RUNS)
        place, step = _choose(config, now)
        if isinstance(place, BucketFolder):
            return cls._open_bucket(place, step, resume=config.resume is not None)
        _refuse_ray_package(place)
        if place.parent != RUNS.resolve():
            made = _list_absent(place.parent)
        lock = _lock(place)
        try:
            if config.resume is None:
                _refuse_strangers(place)
        except BaseException:
            os.close(lock)
            raise
        return cls(path=place, step=step, lock=lock, made=made)

    @classmethod
    def _open_bucket(cls, place: BucketFolder, step: int | None, *, resume: bool) -> Self:
        RunBucket.probe(place)
        path = RunBucket.choose_copy(place)
        lock = _lock(path)
        try:
            bucket = RunBucket.open(place, path, resume=resume)
        except BaseException:
            os.close(lock)
            raise
        return cls(path=path, step=step, lock=lock, bucket=bucket)

    def begin(self, config: Config) -> None:
        """The configuration is accepted: write `config.yaml` and `environment.json`, and point `latest` here.

        Raises:
            RunFolderError: they cannot be written.
        """
        try:
            replace_text(self.path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            replace_text(self.path / "environment.json", json.dumps(describe_environment(config), indent=2) + "\n")
        except OSError as error:
            raise _make_unwritable_error(self.path, error) from error
        if self.bucket is None:
            _point_latest(self.path)

    def close(self) -> None:
        """Unlock the folder, and remove it where no run began in it, or all of it is in the bucket."""
        if self.bucket is not None:
            self.bucket.close()
        else:
            with contextlib.suppress(OSError):  # it holds checkpoints, or there are none
                (self.path / "checkpoints").rmdir()
            if {entry.name for entry in self.path.iterdir()} <= _HIDDEN:
                self._remove()
        os.close(self.lock)

    def _remove(self) -> None:
        """Remove the empty folder, and those above it that were made for it."""
        (self.path / ".lock").unlink()
        self.path.rmdir()
        with contextlib.suppress(OSError):  # somebody else uses one by now
            for folder in self.made:
                folder.rmdir()

    def push(self) -> str | None:
        """Begin to copy what changed to the bucket, if there is one. Return why the copy before failed, once."""
        return self.bucket.push() if self.bucket else None

    def flush(self) -> None:
        """Copy what changed to the bucket, if there is one, before this returns.

        Raises OSError, or RunFolderError where another run has taken the folder.
        """
        if self.bucket:
            self.bucket.flush()

    def place(self, name: str) -> Place:
        """Return where a folder of the run lies that other processes write."""
        return self.bucket.place / name if self.bucket else self.path / name

    def show(self, name: str) -> str:
        """Return where a file of the run is, as people type it: relative where it lies below the current folder."""
        if self.bucket:
            return str(self.bucket.place / name)
        path = self.path / name
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    def holds_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to go on from; False where that cannot be seen."""
        if self.bucket:
            return self.bucket.holds_checkpoint()
        return any((self.path / "checkpoints").glob("step-*"))

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def address(self) -> str:
        """Where to find the folder: `head-0:/shared/runs/x`, or its URL."""
        return str(self.bucket.place) if self.bucket else f"{socket.gethostname()}:{self.path}"

    @property
    def shown(self) -> str:
        """The folder as people type it."""
        return str(self.bucket.place) if self.bucket else str(Path(self.show("x")).parent)


def _choose(config: Config, now: datetime) -> tuple[Place, int | None]:
    """Return the run folder, and the step of the checkpoint in it if `resume` names one."""
    wanted = None if config.run_dir is None else _read_place(str(config.run_dir))
    if config.resume not in (None, "auto"):
        with raise_as(RunFolderError, f"resume = {config.resume} cannot be read", remedy="check the path"):
            place, step = _find_resumed(str(config.resume))
        if wanted is not None and wanted != place:
            raise RunFolderError(
                "resume and run_dir name two run folders",
                got=f"resume = {config.resume}, run_dir = {config.run_dir}",
                remedy="leave run_dir out: a resumed run goes on in its own folder",
            )
        return place, step
    if wanted is not None:
        return wanted, None
    latest = RUNS / "latest"
    if config.resume == "auto" and latest.is_dir():
        return latest.resolve(), None
    _refuse_ray_package(RUNS.resolve())
    return _make_folder(config.name, now), None


def _read_place(text: str) -> Place:
    """Read a folder or URL; `~` is the home. Raises RunFolderError for what can be neither."""
    if is_url(text):
        return BucketFolder.parse(text)
    if fault := _find_slip(text):
        raise RunFolderError(f"{text!r} can be no run folder", got=fault, remedy="correct run_dir or resume")
    with raise_as(RunFolderError, f"{text!r} can be no run folder", remedy="correct run_dir or resume"):
        text.encode()  # engines and ranks hand the path to code that takes UTF-8 alone
        return Path(text).expanduser().resolve()


def _find_slip(text: str) -> str | None:
    """Say why a path is not what was meant; None for a path as people mean it."""
    if text != text.strip():
        return "blanks around it"
    if re.match(r"(s3|gs)(\W?//|:)", text, re.IGNORECASE):
        return "a URL begins with s3:// or gs://"
    if variable := re.search(r"\$[A-Za-z_]\w*|\$\{\w+\}", text):
        return f"nothing fills in {variable[0]}: quotes kept the shell from it, or the text is of a recipe"
    if any(unicodedata.category(sign) == "Cc" for sign in text):
        return "control characters in it"
    return None


def refuse_inside_run(path: Path) -> None:
    """Raise RunFolderError for a new run in the folder of another, whose files it would be taken for."""
    for folder in path.parents:
        if all((folder / name).is_file() for name in ("config.yaml", "environment.json")):
            raise RunFolderError(
                "the run folder lies inside that of another run",
                got=f"{path}, in {folder}",
                remedy="give run_dir a folder beside it; to go on with that run pass resume",
            )


def _list_absent(folder: Path) -> tuple[Path, ...]:
    """List the folder and those above it that are not there, the nearest first."""
    path = folder.absolute()
    with contextlib.suppress(OSError):
        return tuple(itertools.takewhile(lambda one: not one.exists(), (path, *path.parents)))
    return ()


def _refuse_ray_package(path: Path) -> None:
    """Raise RunFolderError for a folder inside the package that `ray job submit --working-dir` unpacks."""
    if is_ray_package(path):
        raise RunFolderError(
            "the run folder lies in Ray's copy of the working directory, which other code cannot find and Ray deletes",
            got=f"{socket.gethostname()}:{path}",
            remedy="set run_dir (--out of an evaluation) to a path that every host mounts, as /shared/runs/NAME",
        )


def _find_resumed(text: str) -> tuple[Place, int | None]:
    """Return the run folder that `resume` names, and the step of the checkpoint if it names one."""
    named = _read_place(text)
    step = re.fullmatch(r"step-(\d{6,})", named.name)
    if isinstance(named, BucketFolder):
        return (named.parent.parent, int(step[1])) if step and named.parent.name == "checkpoints" else (named, None)
    if step and named.parent.name == "checkpoints" and named.is_dir():
        return named.parent.parent, int(step[1])
    if (named / "config.yaml").is_file() or (named / "checkpoints").is_dir():
        return named, None
    perhaps = "perhaps you meant auto; " if not named.exists() and get_close_matches(text.lower(), ["auto"]) else ""
    raise RunFolderError(
        f"resume = {text} names neither a run folder nor a checkpoint in one",
        got=f"{named} ({_describe_no_run(named)})",
        remedy=f"{perhaps}pass resume=auto, a run folder, or RUN/checkpoints/step-NNNNNN",
    )


def _describe_no_run(path: Path) -> str:
    if path.is_dir():
        return "no config.yaml in it"
    return "a file, no folder" if path.exists() else "no such folder"


def _make_folder(name: str, now: datetime) -> Path:
    """Make `runs/<time>-<name>`; of runs started in the same second the later get a number."""
    a_word = name not in ("", ".", "..") and "/" not in name and name == name.strip() and name.isprintable()
    if not a_word or len(name.encode()) > LONGEST_NAME:
        raise RunFolderError(
            "name cannot be part of a folder's name",
            got=repr(name[:80]) + ("..." if len(name) > 80 else ""),
            remedy=f"use a word of up to {LONGEST_NAME} bytes, without /, control characters and blanks around it, or "
            "set run_dir",
        )
    stem = (RUNS / f"{now:%Y%m%d-%H%M%S}-{name}").resolve()
    for number in itertools.count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if stem.parent.is_dir():
                continue
            raise _make_unwritable_error(path, "runs is not a folder") from None
        except FileNotFoundError as error:  # another start has just removed an empty `runs`
            if number > MOST_TRIES:
                raise _make_unwritable_error(path, error) from error
            continue
        except OSError as error:
            raise _make_unwritable_error(path, error) from error
        return path
    raise AssertionError("unreachable")


def _lock(path: Path) -> int:
    """Lock `<path>/.lock` and write our pid into it, which also tests the folder: as root, access() is always true."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _make_unwritable_error(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(lock, f"{os.getpid()} on {socket.gethostname()}\n".encode().ljust(64), 0)
    except BlockingIOError:
        owner = os.pread(lock, 200, 0).decode(errors="replace").strip()
        os.close(lock)
        raise RunFolderError(
            "the run folder is in use by a live run",
            got=f"{path}, held by pid {owner or 'unknown'}",
            remedy="stop that run, or give this one another run_dir",
        ) from None
    except OSError as error:
        os.close(lock)
        raise _make_unwritable_error(path, error) from error
    return lock


def _refuse_strangers(path: Path) -> None:
    held = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock")
    if not held:
        return
    if "config.yaml" not in held:  # not a run's folder: leave it as it was
        (path / ".lock").unlink()
    go_on = "pass resume=auto to go on with that run, or " if {"config.yaml", "checkpoints"} & {*held} else ""
    raise RunFolderError(
        "the run folder is not empty",
        got=f"{path} holds {', '.join(held[:5])}{' and more' if len(held) > 5 else ''}",
        remedy=f"{go_on}give this one another run_dir",
    )


def _point_latest(path: Path) -> None:
    """Point the sibling link `latest` here, in one step; a convenience, so a parent that refuses it is no error."""
    latest, fresh = path.with_name("latest"), path.with_name(f".latest-{os.getpid()}")
    if path == latest or (latest.exists() and not latest.is_symlink()):
        return
    with contextlib.suppress(OSError):
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(path.name, target_is_directory=True)
        fresh.replace(latest)


def _make_unwritable_error(path: Path, why: object) -> RunFolderError:
    return RunFolderError(
        "the run folder cannot be written", got=f"{path}: {why}", remedy="give run_dir a folder this user can write"
    )
