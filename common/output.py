"""Files that one process writes and another reads: the writer says what it wrote, the reader proves that it sees it."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

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

    def __init__(self, file: BinaryIO) -> None:
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


class FolderOutput:
    """Writes files into a folder, and remembers each with its size and hash."""

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
    folder: Path, reports: Sequence[WriteReport], *, hashed: bool = False, wait_s: float = SEEN_WITHIN_S
) -> str | None:
    """Say which file its writer reported and this process does not see in `folder`; None where it sees all of them.

    Args:
        hashed: compare contents too: a file of the same size may be an older one.
        wait_s: how long a file may take to appear.
    """
    deadline = time.monotonic() + wait_s
    for report in reports:
        for file in report.files:
            while (found := _describe_difference(folder, file, hashed=hashed)) and time.monotonic() < deadline:
                time.sleep(0.1)
            if found:
                return (
                    f"{report.by} on {report.host} wrote {file.name} ({file.bytes} bytes), "
                    f"this process on {socket.gethostname()} {found} in {folder}"
                )
    return None


def _describe_difference(folder: Path, file: WrittenFile, *, hashed: bool) -> str | None:
    """Say how a file differs from what its writer reported; None where it does not."""
    try:
        size = (folder / file.name).stat().st_size
    except OSError:
        return "does not see it"
    if size != file.bytes:
        return f"sees {size} bytes"
    if hashed and describe_file(folder, file.name) != file:
        return "sees other contents"
    return None
