"""The prompts of each step, read and preprocessed while the step before is trained."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import suppress

from common.data.stream import PromptStream, StreamState
from common.errors import DeadlineError
from common.models.prompts import PromptEncoder
from common.types import Prompt

CLOSE_S = 5.0  # for the batch being made, when a run ends


class PromptFeed:
    """Encodes the batches of a stream, one batch ahead. An error in a batch is raised when that batch is due."""

    def __init__(self, stream: PromptStream, encoder: PromptEncoder, *, timeout_s: float) -> None:
        self._stream, self._encoder, self._timeout_s = stream, encoder, timeout_s
        self._ahead: Future[list[Prompt]] | None = None
        self._taken = stream.state()

    def next_batch(self) -> list[Prompt]:
        """Return the next P prompts, all different. Raises DeadlineError when they do not come in time."""
        self._ahead = self._ahead or self._begin()
        try:
            prompts = self._ahead.result(self._timeout_s)
        except TimeoutError as error:
            if self._ahead.done():  # the batch raised it: it is no timeout of ours
                raise
            raise DeadlineError(
                "waited too long for the next prompts",
                got=f"a batch not read and preprocessed after {self._timeout_s:g} s",
                remedy="look at the disk that data.path lies on, or raise data.timeout_s",
            ) from error
        self._taken = self._stream.state()
        self._ahead = self._begin()
        return prompts

    def state(self) -> StreamState:
        """Return the state after the batches that were taken, without the one made ahead."""
        return self._taken

    def restore(self, state: StreamState) -> None:
        """Go on from `state`. Raises DataError when it was taken on other rows."""
        self._forget(self._timeout_s)
        self._stream.restore(state)
        self._taken = state

    def close(self) -> None:
        """Wait for the batch being made, for at most `CLOSE_S`: the disk may be stuck."""
        with suppress(TimeoutError):
            self._forget(CLOSE_S)

    def _forget(self, timeout_s: float) -> None:
        """Wait for the batch being made and drop it. Raises TimeoutError when it is not done in time."""
        if self._ahead:
            self._ahead.exception(timeout_s)
        self._ahead = None

    def _begin(self) -> Future[list[Prompt]]:
        """Begin to make a batch in a thread that no exit of the process waits for."""
        future: Future[list[Prompt]] = Future()

        def make() -> None:
            try:
                future.set_result([self._encoder.encode(example) for example in self._stream.next_batch()])
            except BaseException as error:  # noqa: BLE001  # raised again where the batch is due
                future.set_exception(error)

        threading.Thread(target=make, name="feed", daemon=True).start()
        return future
