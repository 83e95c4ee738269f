"""What the helper of whole runs takes for left behind."""

from __future__ import annotations

import mmap
from pathlib import Path

from tests.helpers.jobs import SHARED_MEMORY, orphans_in_shared_memory


def test_a_file_is_left_behind_when_nobody_has_it_open_or_mapped(request: object) -> None:
    path = SHARED_MEMORY / f"rollcall-test-{id(request)}"
    try:
        with path.open("w+b") as file:
            file.truncate(mmap.PAGESIZE)
            assert path not in orphans_in_shared_memory()
            mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        assert path not in orphans_in_shared_memory()
        mapped.close()
        assert path in orphans_in_shared_memory()
    finally:
        Path(path).unlink()
