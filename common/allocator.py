"""How the C library's allocator behaves in processes that compute on a CPU."""

from __future__ import annotations

KEPT_MEMORY = {  # blocks under 32 MiB, malloc's most, stay the process's: every step would fault them in anew
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_ARENA_MAX": "1",  # forward and backward are two threads
}
