"""Files that one process writes and another reads: the writer says what it wrote, the reader proves that it sees it."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from common.storage.bucket import BucketFolder

Place = Path | BucketFolder  # where files of a run lie, for every process of it
_CHUNK = 8 << 20  # bytes
SEEN_WITHIN_S = 5.0  # a network file system may show another host's file a moment late


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A file as the process knows it that wrote it."""

    name: str  # relative to the folder it was told to write into: "deepspeed/rank-0.pt"
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReport:
    """What a process wrote on its own host, or the error that kept it from it."""

    by: str  # "rank 1", "engine-0"
    files: tuple[WrittenFile, ...]
    error: OSError | None = None
    host: str = field(default_factory=socket.gethostname)


class HashingFile:
    """A file open for writing that counts and hashes what goes through it."""

    def __init__(self, file: BinaryIO | Any) -> None:
        self._file, self._hash, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data` and return its length. Raises OSError."""
        length = memoryview(data).nbytes
        self._file.write(data)
        self._hash.update(data)
        self.bytes += length
        return length

    def flush(self) -> None:
        """Hand everything on to the system."""
        self._file.flush()

    def describe(self, name: str) -> WrittenFile:
        """Return what was written so far, as the file `name`."""
        return WrittenFile(name=name, bytes=self.bytes, sha256=self._hash.hexdigest())


class Output(Protocol):
    """Writes files to a place, and remembers each with its size and hash."""

    files: list[WrittenFile]

    def open(self, name: str) -> AbstractContextManager[HashingFile]:
        """Open a file that is whole when the block ends. Raises OSError."""


def open_output(place: Place) -> Output:
    """Return what writes files to a place; nothing of them passes through this host's disk if it is a bucket."""
    return FolderOutput(place) if isinstance(place, Path) else BucketOutput(place)


class FolderOutput:
    """Writes files into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: list[WrittenFile] = []

    @contextmanager
    def open(self, name: str) -> Iterator[HashingFile]:
        """Open a file that is on disk when the block ends. Raises OSError."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            hashing = HashingFile(file)
            yield hashing
            file.flush()
            os.fsync(file.fileno())
        self.files.append(hashing.describe(name))


class BucketOutput:
    """Writes objects into a bucket, part by part."""

    def __init__(self, folder: BucketFolder) -> None:
        self._folder = folder
        self.files: list[WrittenFile] = []

    @contextmanager
    def open(self, name: str) -> Iterator[HashingFile]:
        """Open an object that is there when the block ends. Raises OSError."""
        with self._folder.open_output(name) as stream:
            hashing = HashingFile(stream)
            yield hashing
        self.files.append(hashing.describe(name))


@contextmanager
def write_folder(place: Place) -> Iterator[Path]:
    """Give a folder of this host to write into; at the end of the block its files are at the place. Raises OSError."""
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="rollcall-") as scratch:
        yield Path(scratch)
        for path in sorted(Path(scratch).rglob("*")):
            if path.is_file():
                with path.open("rb") as source, place.open_output(str(path.relative_to(scratch))) as target:
                    shutil.copyfileobj(source, target, _CHUNK)


@contextmanager
def read_folder(place: Place, files: Sequence[WrittenFile]) -> Iterator[Path]:
    """Give a folder of this host that holds these files of a place, checked if they had to be brought here.

    Raises OSError for a file that is missing, cut short or damaged.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="rollcall-") as scratch:
        output = FolderOutput(Path(scratch))
        for file in files:
            with output.open(file.name) as target:
                for chunk in place.read_chunks(file.name):
                    target.write(chunk)
            if output.files[-1] != file:
                raise OSError(f"{place / file.name} is not what was written: size or sha256 differ")
        yield Path(scratch)


def follow_umask(folder: Path) -> None:
    """Give every file below a folder the mode of any new one: 0644 under a umask of 022. Raises OSError.

    safetensors makes its files for their owner alone, whom nobody else could then serve.
    """
    status = Path("/proc/self/status").read_text()  # to ask os.umask is to set it, for all threads
    (mask,) = (int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:"))
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~mask)


def name_rank(rank: int) -> str:
    """Return how reports and manifests name a rank of the learner."""
    return f"rank {rank}"


def read_bytes(place: Place, name: str) -> bytes:
    """Return a small file of a place. Raises OSError."""
    return (place / name).read_bytes() if isinstance(place, Path) else place.read(name)


def describe_file(folder: Path, name: str) -> WrittenFile:
    """Return size and hash of a file that is already written. Raises OSError."""
    path = folder / name
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return WrittenFile(name=name, bytes=path.stat().st_size, sha256=digest)


def describe_folder(folder: Path) -> tuple[WrittenFile, ...]:
    """Return every file below a folder, sorted by name. Raises OSError."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return tuple(describe_file(folder, name) for name in names)


def find_unseen(
    place: Place, reports: Sequence[WriteReport], *, hashed: bool = False, wait_s: float = SEEN_WITHIN_S
) -> str | None:
    """Say which file its writer reported and this process does not see at the place; None where it sees all of them.

    Args:
        hashed: compare contents of a folder too: a file of the same size may be an older one.
        wait_s: how long a file may take to appear.
    """
    deadline = time.monotonic() + wait_s
    sizes = {name: found.bytes for name, found in place.list_objects().items()} if not isinstance(place, Path) else None
    for report in reports:
        for file in report.files:
            while found := _describe_difference(place, file, sizes, hashed=hashed):
                if sizes is not None or time.monotonic() >= deadline:  # a bucket shows what is there at once
                    return (
                        f"{report.by} on {report.host} wrote {file.name} ({file.bytes} bytes), "
                        f"this process on {socket.gethostname()} {found} in {place}"
                    )
                time.sleep(0.1)
    return None


def _describe_difference(place: Place, file: WrittenFile, sizes: dict[str, int] | None, *, hashed: bool) -> str | None:
    """Say how a file differs from what its writer reported; None where it does not."""
    try:
        size = (place / file.name).stat().st_size if isinstance(place, Path) else (sizes or {}).get(file.name)
    except OSError:
        size = None
    if size is None:
        return "does not see it"
    if size != file.bytes:
        return f"sees {size} bytes"
    if hashed and isinstance(place, Path) and describe_file(place, file.name) != file:
        return "sees other contents"
    return None
