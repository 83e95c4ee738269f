"""Chat templates are programs that come with a model: they run in a process of their own, which has limits.

A template may loop for ever or make a text of gigabytes, in one operation that nothing in Python interrupts. So the
process that asks forks a child before the first chat, and the kernel ends a child that takes too much.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import struct
import time
import warnings
import weakref
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

from common.config.foreign_text import parse_json
from common.errors import ModelError

RENDER_S = 2.0  # of CPU that one chat may take; a sound template takes a millisecond
_MEMORY = 1 << 30  # bytes that the child may take beside what it shares
_LONGEST = 1 << 20  # characters of a rendered chat
_SILENCE_S = 120.0  # without an answer or an end, on a machine that does not come round to the child
_HEAD = struct.Struct("!Q")
_FILES = ("chat_template.jinja", "chat_template.json")


class ChatRenderer:
    """Stands for the `apply_chat_template` of a processor or tokenizer, and renders in a child."""

    def __init__(self, render: Callable[..., Any], *, path: str, revision: str | None) -> None:
        """`render` is the function it stands for; the model's path and revision are for errors."""
        self._render, self._path, self._revision = render, path, revision
        self._child: _Child | None = None
        self._end: Callable[[], Any] = lambda: 0  # ends the child, once, and returns its wait status
        self._lock = Lock()

    def __call__(self, chat: Any, **options: Any) -> str:
        """Return the chat as text. Raises ModelError, naming the template's file, when it fails or takes too much."""
        with self._lock:
            answer = self._ask({"chat": chat, "options": options})
        if "text" in answer:
            return str(answer["text"])
        raise ModelError(
            f"the chat template in {find_template(self._path, self._revision)} cannot be rendered",
            got=answer["error"],
            remedy="use a model with a sound template, or correct that file",
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the child's answer, a `text` or an `error`."""
        if self._child is None:
            self._child = _fork(self._render)
            self._end = weakref.finalize(self, _end, self._child, owner=os.getpid())
        answer = None
        try:
            with suppress(BrokenPipeError):
                _write(self._child.requests, json.dumps(request).encode())
                answer = _read(self._child.answers, time.monotonic() + _SILENCE_S)
        finally:
            if answer is None:  # it ended, or whoever waits was interrupted
                self._child = None
                ended_by = os.waitstatus_to_exitcode(self._end())
        if answer is not None:
            found: dict[str, Any] = parse_json(answer)
            return found
        if ended_by == -signal.SIGPROF:
            return {"error": f"it was not done after {RENDER_S:g} s of computing"}
        return {"error": f"the process that rendered it ended with {ended_by}"}

    def __deepcopy__(self, memo: Any) -> ChatRenderer:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    pid: int
    requests: int  # descriptor to write to
    answers: int  # descriptor to read from


def find_template(path: str, revision: str | None) -> str:
    """Return the file that holds a model's chat template, or the model's path where that cannot be told."""
    from transformers.utils.hub import cached_file

    for name in (*_FILES, "processor_config.json", "tokenizer_config.json"):
        with suppress(OSError, ValueError):
            file = cached_file(path, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
            if file and (name in _FILES or "chat_template" in parse_json(Path(file).read_bytes())):
                return str(file)
    return path


def _fork(render: Callable[..., Any]) -> _Child:
    """Fork a child that renders until its requests end."""
    (asked, requests), (answers, answered) = os.pipe(), os.pipe()
    configured = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = configured or "true"  # as it is without; unset, tokenizers warns of the fork
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of Python 3.12 where there are threads; the child has none
        pid = os.fork()
    if pid == 0:
        _serve(render, asked, answered)
    if configured is None:
        del os.environ["TOKENIZERS_PARALLELISM"]
    os.close(asked)
    os.close(answered)
    return _Child(pid=pid, requests=requests, answers=answers)


def _end(child: _Child, *, owner: int) -> int:
    """End the child and return its wait status."""
    if os.getpid() != owner:  # a fork of the one who asked
        return 0
    with suppress(OSError):
        os.close(child.requests)
        os.close(child.answers)
    with suppress(ChildProcessError):
        ended, status = os.waitpid(child.pid, os.WNOHANG)
        if not ended:  # without requests it would end by itself, but not while it renders
            os.kill(child.pid, signal.SIGKILL)
            _, status = os.waitpid(child.pid, 0)
        return status
    return 0


def _serve(render: Callable[..., Any], asked: int, answered: int) -> NoReturn:
    """Be the child: answer requests until there are no more. Nothing of the parent is closed, flushed or collected."""
    try:
        gc.disable()
        _leave_parent(keep=(0, 1, 2, asked, answered))
        while (request := _read(asked)) is not None:
            signal.setitimer(signal.ITIMER_PROF, RENDER_S)  # whose signal ends the process
            answer = _answer(render, parse_json(request))
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(answered, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _leave_parent(*, keep: Collection[int]) -> None:
    """Let go of the parent's files, locks among them, and of its signal handlers, and limit the memory."""
    for number in (signal.SIGTERM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):  # these go to the parent too, whose end is the child's
        signal.signal(number, signal.SIG_IGN)
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor not in keep:
            with suppress(OSError):
                os.close(descriptor)
    shared = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = shared + _MEMORY if most == resource.RLIM_INFINITY else min(shared + _MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(render: Callable[..., Any], request: dict[str, Any]) -> dict[str, str]:
    try:
        text = render(request["chat"], **request["options"])
    except MemoryError:
        return {"error": f"it takes more than {_MEMORY >> 20} MB of memory"}
    except BaseException as error:  # noqa: BLE001  # a template may raise anything
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    if len(text) > _LONGEST:
        return {"error": f"it makes a text of {len(text)} characters"}
    return {"text": text}


def _write(descriptor: int, data: bytes) -> None:
    """Write a message, its length first."""
    rest = memoryview(_HEAD.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read(descriptor: int, deadline: float | None = None) -> bytes | None:
    """Read a message; None at the end of all messages, or at a deadline of the monotonic clock."""
    head = _read_exactly(descriptor, _HEAD.size, deadline)
    return _read_exactly(descriptor, _HEAD.unpack(head)[0], deadline) if head is not None else None


def _read_exactly(descriptor: int, count: int, deadline: float | None) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        if deadline is not None and not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        piece = os.read(descriptor, min(count - len(data), 1 << 16))
        if not piece:
            return None
        data += piece
    return bytes(data)
