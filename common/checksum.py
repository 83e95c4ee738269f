"""The checksum of bytes that travel between processes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any


def checksum(arrays: Iterable[Any]) -> int:
    """Return the 64-bit xxh3 of the bytes of contiguous arrays, one after the other. It is as fast as memory."""
    import xxhash

    digest = xxhash.xxh3_64()
    for one in arrays:
        digest.update(one)
    return digest.intdigest()


def combine(checksums: Iterable[int]) -> str:
    """Return one checksum of several, in their order, as 16 hexadecimal digits."""
    return f"{checksum([array('Q', checksums)]):016x}"
