"""A cache bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteLRU(Generic[Key, Value]):
    """Keeps the values used last whose sizes add up to at most `limit` bytes. One thread at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Key, value: Value, nbytes: int) -> None:
        """A value larger than the whole limit is not kept."""
        if key in self._values:
            self._held -= self._values.pop(key)[1]
        if nbytes > self._limit:
            return
        self._values[key] = (value, nbytes)
        self._held += nbytes
        while self._held > self._limit:
            self._held -= self._values.popitem(last=False)[1][1]
