"""One run at a time in a folder of a bucket, which knows no lock: an object that its holder keeps writing."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from common.command import say
from common.config.foreign_text import parse_json
from common.errors import RunFolderError
from common.storage.bucket import BucketFolder

NAME = ".lock"
BEAT_S = 10.0  # between two writings
DEAD_S = 30.0  # a holder that did not write for so long is dead
_JOIN_S = 5.0
_SETTLE_S = 1.0  # two that begin at the same moment see who wrote last


class BucketLock:
    """A held lock. A thread keeps writing it until `release`."""

    def __init__(self, folder: BucketFolder, *, home: str) -> None:
        """Take the lock; wait `DEAD_S` where its holder may be dead.

        Args:
            home: what only one process at a time can have. A holder with the same home has ended.

        Raises:
            RunFolderError: a live run holds it.
            OSError: the bucket does not answer.
        """
        self.lost = False  # another run has taken it
        self._folder, self._home, self._id, self._beats = folder, home, secrets.token_hex(8), 0
        self._wait_for_holder()
        self._write()
        time.sleep(_SETTLE_S)
        self.require()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="run-folder-lock", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise RunFolderError if another run took the lock, or OSError if the bucket does not answer."""
        holder = self._read()
        if holder is not None and holder.get("id") != self._id:
            self.lost = True
            raise _make_taken_error(self._folder, holder)

    def release(self) -> None:
        """Stop writing, and remove the lock if it is still ours."""
        self._ended.set()
        self._thread.join(_JOIN_S)  # a writing that is under way would bring the lock back
        with suppress(OSError, RunFolderError):
            self.require()
            self._folder.delete(NAME)

    def _wait_for_holder(self) -> None:
        first = holder = self._read()
        if holder is not None and holder.get("home") != self._home:
            say(f"waiting up to {DEAD_S:g} s to see whether the run that holds {self._folder} is dead")
        deadline = time.monotonic() + DEAD_S
        while holder is not None and holder.get("home") != self._home and time.monotonic() < deadline:
            if holder != first:
                raise _make_taken_error(self._folder, holder)
            time.sleep(_SETTLE_S)
            holder = self._read()

    def _keep_writing(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.require()
                self._write()
            except OSError:
                continue  # a run goes on while its bucket is away
            except RunFolderError:
                return  # `require` tells whoever saves next

    def _read(self) -> dict[str, Any] | None:
        try:
            holder = parse_json(self._folder.read(NAME))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _write(self) -> None:
        self._beats += 1
        row = {
            "id": self._id,
            "beats": self._beats,
            "home": self._home,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._folder.write(NAME, json.dumps(row).encode())


def _make_taken_error(folder: BucketFolder, holder: dict[str, Any]) -> RunFolderError:
    return RunFolderError(
        "the run folder is in use by a live run",
        got=f"{folder}, held by pid {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}",
        remedy="stop that run, or give this one another run_dir",
    )
