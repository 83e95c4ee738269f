"""A folder of this host whose files are copied to a bucket while a run writes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from common.storage.bucket import BucketFolder

EVERY_S = 5.0  # between two uploads, or ten times what one takes
_ELSEWHERE = ("checkpoints", "export", "profile")  # brought by those who read them


class Mirror:
    """Uploads whole files that changed, removes those that are gone. Hidden files stay here."""

    def __init__(self, folder: Path, bucket: BucketFolder) -> None:
        self._folder, self._bucket = folder, bucket
        self._uploaded: dict[str, tuple[int, int]] = {}  # by name: time of change and size of what is in the bucket
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None
        self._next = 0.0  # time.monotonic() of the next upload
        self._failure: str | None = None

    def bring_down(self) -> None:
        """Make the folder hold what is in the bucket, without checkpoints, export and profile. Raises OSError."""
        for name in bring_small_files(self._bucket, self._folder):
            self._uploaded[name] = _stamp(self._folder / name)

    def push(self) -> str | None:
        """Begin to upload what changed, if it is time. Return why the upload before failed, once."""
        failure, self._failure = self._failure, None
        busy = self._thread is not None and self._thread.is_alive()
        if not busy and time.monotonic() >= self._next:
            self._thread = threading.Thread(target=self._try_upload, name="run-folder-mirror", daemon=True)
            self._thread.start()
        return failure

    def flush(self) -> None:
        """Upload what changed, before this returns. Raises OSError."""
        with self._one_at_a_time:
            self._upload()

    def _try_upload(self) -> None:
        began = time.monotonic()
        try:
            self.flush()
        except OSError as error:
            self._failure = str(error)
        now = time.monotonic()
        self._next = now + max(EVERY_S, 10 * (now - began))

    def _upload(self) -> None:
        there = dict(self._list_files())
        for name, stamp in there.items():
            if self._uploaded.get(name) != stamp:
                try:
                    data = (self._folder / name).read_bytes()
                except FileNotFoundError:  # removed a moment ago
                    continue
                self._bucket.write(name, data)
                self._uploaded[name] = stamp
        for name in self._uploaded.keys() - there.keys():
            self._bucket.delete(name)
            del self._uploaded[name]

    def _list_files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                yield str(name), _stamp(path)


def bring_small_files(bucket: BucketFolder, folder: Path) -> list[str]:
    """Copy the small files of a run from its bucket into a folder, and return their names. Raises OSError."""
    brought = []
    for name in bucket.list_objects():
        parts = PurePosixPath(name).parts
        if parts[0] in _ELSEWHERE or any(part.startswith(".") for part in parts):
            continue
        path = folder / name
        data = bucket.read(name)  # which refuses a name that leads outside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        brought.append(name)
    return brought


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
