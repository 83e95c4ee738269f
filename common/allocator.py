"""Settings of the C library's allocator for processes that compute on a CPU."""

from __future__ import annotations

KEPT_MEMORY = {  # freed memory stays with the process: else every step would ask the kernel for it again
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_ARENA_MAX": "1",  # forward and backward are two threads
}
