"""How the C library's allocator behaves in processes that compute on a CPU."""

from __future__ import annotations

KEPT_MEMORY = {  # what is freed stays the process's: every step would fault it in anew
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_ARENA_MAX": "1",  # forward and backward are two threads
}
