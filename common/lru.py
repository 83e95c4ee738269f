"""A cache bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteLRU(Generic[Key, Value]):
    """Keeps the values that were used last, up to `limit` bytes in all. Not for several threads at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def clear(self) -> None:
        """Keep nothing any more."""
        self._held = 0
        self._values.clear()

    def get(self, key: Key) -> Value | None:
        """Return the value, which is now the one used last; None where it is not kept."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Key, value: Value, nbytes: int) -> None:
        """Keep a value of `nbytes`, in place of those used longest ago. One larger than the limit is not kept."""
        if key in self._values:
            self._held -= self._values.pop(key)[1]
        if nbytes > self._limit:
            return
        self._values[key] = (value, nbytes)
        self._held += nbytes
        while self._held > self._limit:
            self._held -= self._values.popitem(last=False)[1][1]
