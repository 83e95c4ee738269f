"""A folder of the driver's that processes on other hosts read too: fetched once a host, into a cache.

`embedded:tiny` and a local model folder exist where the driver runs. Another host that sees the same files under the
same path (a shared disk) reads them there. Any other copies them through Ray's object store into

    ~/.cache/rollcall/models/<digest>/          XDG_CACHE_HOME moves it
                            .writing-<digest>/  unfinished; what a killed copy left is removed by the next
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DeadlineError, ModelError
from common.placement import get

PIECE = 16 << 20  # bytes that travel at a time
_BLOCK, _BLOCKS = 64 << 10, 64  # of each file, what the digest reads
_OTHER_WEIGHTS = {".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}  # beside safetensors: not read


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFolder:
    """A folder as other hosts find it."""

    path: str  # on the driver's host
    digest: str  # of names, sizes and samples of the bytes
    server: Any  # actor on the driver's host that reads it aloud


class FolderServer:
    """An actor beside the driver that reads the files of one folder to other hosts."""

    def __init__(self, path: str) -> None:
        self._folder = Path(path)

    def list_files(self) -> dict[str, int]:
        """Return the bytes of every file by its name in the folder."""
        return list_files(self._folder)

    def read(self, name: str, offset: int) -> bytes:
        """Return up to PIECE bytes of a file from `offset` on."""
        with (self._folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE)


def share_folder(path: str) -> SharedFolder:
    """Let other hosts read a folder of this one, as long as the run lives.

    Raises:
        OSError: it cannot be read.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(FolderServer)
    server = actor.options(scheduling_strategy=here, max_concurrency=8).remote(path)
    return SharedFolder(path=path, digest=compute_digest(Path(path)), server=server)


def find_local(model_path: str | SharedFolder, *, timeout_s: float) -> str:
    """Return where this host finds a model: a path or hub id as it is, a shared folder after it was fetched.

    Raises:
        ModelError: the cache of this host cannot be written.
        DeadlineError: another process of this host fetches it for longer than `timeout_s`.
    """
    if isinstance(model_path, str):
        return model_path
    if _holds(Path(model_path.path), model_path.digest):
        return model_path.path
    home = cache_home() / "models" / model_path.digest
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with _lock(home.with_suffix(".lock"), timeout_s=timeout_s):
            if not _holds(home, model_path.digest):
                _fetch(model_path, home, timeout_s=timeout_s)
    except OSError as error:
        raise ModelError(
            f"the model cannot be copied to host {socket.gethostname()}",
            got=f"{home.parent}: {error.strerror or error}",
            remedy="free space there, point XDG_CACHE_HOME at a folder that every host can write, or put the model on "
            "a disk that all hosts share",
        ) from error
    return str(home)


def cache_home() -> Path:
    """Return the folder of everything that Rollcall may fetch or make anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rollcall"


def list_files(folder: Path) -> dict[str, int]:
    """Return the bytes of every file of a model folder by its name: no hidden ones, no weights in a second format."""
    skipped = _OTHER_WEIGHTS if any(folder.glob("*.safetensors")) else set()
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and path.suffix not in skipped:
            found[name.as_posix()] = path.stat().st_size
    return found


def compute_digest(folder: Path) -> str:
    """Return the SHA-256 of the names, the sizes, and 64 blocks of 64 KiB spread over each file; of small files, all.

    16 GB of weights take a second. A change of a few small tensors of a large file alone can go unseen.
    """
    digest = hashlib.sha256()
    for name, size in list_files(folder).items():
        digest.update(f"{name}\0{size}\0".encode())
        with (folder / name).open("rb") as file:
            for block in range(min(_BLOCKS, -(-size // _BLOCK))):
                file.seek(block * max(_BLOCK, size // _BLOCKS))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]


def _holds(folder: Path, digest: str) -> bool:
    try:
        return folder.is_dir() and compute_digest(folder) == digest
    except OSError:
        return False


def _fetch(shared: SharedFolder, home: Path, *, timeout_s: float) -> None:
    """Copy a shared folder to `home`, whole or not at all. Raises OSError, ModelError when it changed meanwhile."""
    aside = home.with_name(f".writing-{home.name}")
    for left in (aside, home):
        shutil.rmtree(left, ignore_errors=True)
    (files,) = get([shared.server.list_files.remote()], what="the list of the model's files", timeout_s=timeout_s)
    for name, size in files.items():
        target = aside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for offset in range(0, size, PIECE):
                (piece,) = get(
                    [shared.server.read.remote(name, offset)], what=f"{name} of the model", timeout_s=timeout_s
                )
                file.write(piece)
    if not _holds(aside, shared.digest):
        shutil.rmtree(aside, ignore_errors=True)
        raise ModelError(
            f"the model arrived at host {socket.gethostname()} as something else",
            got=f"{shared.path}: its files are not those the run began with",
            remedy="leave the folder of the model as it is while a run starts",
        )
    aside.rename(home)


@contextmanager
def _lock(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold a file lock, which a process that dies gives back. Raises DeadlineError."""
    deadline = time.monotonic() + timeout_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        "waited too long for another process of this host to fetch the model",
                        got=f"{path} still locked after {timeout_s:g} s",
                        remedy="look for its process, or raise start_timeout_s of rollout and learner",
                    ) from None
                time.sleep(0.1)
        yield
