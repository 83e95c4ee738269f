"""Prompts a step, the next ones read and preprocessed while the current ones are trained on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from common.data.stream import PromptStream, StreamState
from common.prompts import PromptEncoder
from common.types import Prompt


class PromptFeed:
    """A stream and its encoder, one batch ahead. Whatever making a batch raises, `next_batch` raises in its turn."""

    def __init__(self, stream: PromptStream, encoder: PromptEncoder) -> None:
        self._stream, self._encoder = stream, encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: Future[list[Prompt]] | None = None
        self._taken = stream.state()

    def next_batch(self) -> list[Prompt]:
        """P prompts, different ones."""
        prompts = self._ahead.result() if self._ahead else self._make()
        self._taken = self._stream.state()
        self._ahead = self._thread.submit(self._make)
        return prompts

    def state(self) -> StreamState:
        """After the batches that were taken; the one ahead is not one of them."""
        return self._taken

    def restore(self, state: StreamState) -> None:
        """Go on from `state`. Raises DataError when it was taken on a data set of another size."""
        self._forget()
        self._stream.restore(state)
        self._taken = state

    def close(self) -> None:
        """Wait for the batch being made."""
        self._forget()
        self._thread.shutdown()

    def _forget(self) -> None:
        if self._ahead and not self._ahead.cancel():
            self._ahead.exception()
        self._ahead = None

    def _make(self) -> list[Prompt]:
        return [self._encoder.encode(example) for example in self._stream.next_batch()]
