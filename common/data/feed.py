"""The prompts of each step, read and preprocessed while the step before is trained."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress

from common.data.stream import PromptStream, StreamState, Visit, want_all
from common.errors import DeadlineError
from common.models.prompts import PromptEncoder
from common.types import Prompt

CLOSE_S = 5.0  # for the prompts being made, when a run ends


class PromptFeed:
    """Encodes the rows of a stream, one step ahead of who takes them.

    What is made ahead is a guess at what will be drawn next. It is kept by visit, and decides nothing: the rows of a
    step are drawn when they are taken. An error in a row is raised when that row is due.
    """

    def __init__(self, stream: PromptStream, encoder: PromptEncoder, *, ahead: int, timeout_s: float) -> None:
        """Begin at the stream's place.

        Args:
            ahead: prompts to make ahead: P.
        """
        self._stream, self._encoder, self._ahead, self._timeout_s = stream, encoder, ahead, timeout_s
        self._made: dict[Visit, Prompt] = {}
        self._making: Future[dict[Visit, Prompt]] | None = None
        self.encoded = 0  # prompts so far
        self._waited_s = 0.0

    def take(
        self, count: int, *, without: Collection[str] = (), wanted: Callable[[str, int], bool] = want_all
    ) -> list[tuple[Prompt, int]]:
        """Return the next `count` prompts, all different, each with the epoch it was drawn in.

        Fewer come where the data hold no more beside those of `without`; see `PromptStream.draw`.

        Raises DeadlineError when they do not come in time.
        """
        deadline = time.monotonic() + self._timeout_s
        visits = self._stream.draw(count, without=without, wanted=wanted)
        with suppress(Exception):  # of a row that may not be due
            self._keep_made(deadline)
        if missing := [visit for visit in visits if visit not in self._made]:
            self._making = self._begin(missing)
            self._keep_made(deadline)

        prompts = [(self._made.pop(visit), visit.epoch) for visit in visits]
        self._make_ahead(wanted)
        return prompts

    def recall(self, drawn: Sequence[tuple[str, int]]) -> list[Prompt]:
        """Return prompts that were drawn before, made again from the ids of their rows and the epochs they came up in.

        Raises DataError where there is no such row.
        """
        visits = [Visit(self._stream.find(row_id), epoch) for row_id, epoch in drawn]
        return [self._encoder.encode(example) for example in self._stream.read(visits)]

    def take_wait(self) -> float:
        """Return the seconds since the last call that were spent waiting for prompts."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    @property
    def epochs(self) -> float:
        """Passes over the rows so far, by what was taken."""
        return self.state().epochs

    def state(self) -> StreamState:
        """Return the state after the prompts that were taken, without those made ahead."""
        return self._stream.state()

    def restore(self, state: StreamState) -> None:
        """Go on from `state`. Raises DataError when it was taken on other rows."""
        self._stream.restore(state)

    def close(self) -> None:
        """Wait for the prompts being made, for at most `CLOSE_S`: the disk may be stuck."""
        if self._making:
            with suppress(TimeoutError):
                self._making.exception(CLOSE_S)

    def _make_ahead(self, wanted: Callable[[str, int], bool]) -> None:
        """Begin to make what the next step will probably draw, and forget what it will not."""
        coming = self._stream.peek(self._ahead, wanted=wanted)
        self._made = {visit: self._made[visit] for visit in coming if visit in self._made}
        if missing := [visit for visit in coming if visit not in self._made]:
            self._making = self._begin(missing)

    def _keep_made(self, deadline: float) -> None:
        """Wait for the prompts being made, and keep them. Raises DeadlineError, or what making them raised."""
        if self._making is None:
            return
        began = time.monotonic()
        try:
            self._made |= self._making.result(max(0.0, deadline - began))
        except TimeoutError as error:
            if self._making.done():  # a row raised it: it is no timeout of ours
                raise
            raise DeadlineError(
                "waited too long for the next prompts",
                got=f"a batch not read and preprocessed after {self._timeout_s:g} s",
                remedy="look at the disk that data.path lies on, or raise data.timeout_s",
            ) from error
        finally:
            self._waited_s += time.monotonic() - began
        self._making = None

    def _begin(self, visits: Sequence[Visit]) -> Future[dict[Visit, Prompt]]:
        """Begin to make prompts in a thread that no exit of the process waits for."""
        future: Future[dict[Visit, Prompt]] = Future()

        def make() -> None:
            try:
                prompts = []
                for example in self._stream.read(visits):
                    prompts.append(self._encoder.encode(example))
                    self.encoded += 1
                future.set_result(dict(zip(visits, prompts, strict=True)))
            except BaseException as error:  # noqa: BLE001  # raised again where the rows are due
                future.set_exception(error)

        threading.Thread(target=make, name="feed", daemon=True).start()
        return future
