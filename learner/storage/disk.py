"""Writes that nobody waits for longer than seconds: a network disk that hangs must not hold a run up."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

PATIENCE_S = 5.0
MOST_WAITING = 10_000  # writes behind one that hangs; more are lost


class Disk:
    """Does writes one after the other, in a thread that no exit of the process waits for."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], object], Future[None]]] = SimpleQueue()
        self._hangs: Future[None] | None = None  # the first write that did not end in time
        self._thread: threading.Thread | None = None

    def write(self, work: Callable[[], object]) -> None:
        """Do a write, and wait for it. Behind one that hangs it is done later, and not waited for.

        Raises:
            OSError: the write's own; ETIMEDOUT where it did not end in PATIENCE_S, which may still come.
        """
        if self._hangs and self._hangs.done():
            self._hangs = None
        if self._hangs and self._queue.qsize() >= MOST_WAITING:
            raise OSError(errno.ETIMEDOUT, "the disk hangs, and too much waits for it")
        done: Future[None] = Future()
        self._queue.put((work, done))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
            self._thread.start()
        if self._hangs:
            return
        try:
            done.result(PATIENCE_S)
        except TimeoutError as error:
            if done.done():
                raise
            self._hangs = done
            raise OSError(errno.ETIMEDOUT, f"the disk did not answer for {PATIENCE_S:g} s") from error

    def _run(self) -> None:
        while True:
            work, done = self._queue.get()
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # raised again where it is waited for
                done.set_exception(error)
            else:
                done.set_result(None)
