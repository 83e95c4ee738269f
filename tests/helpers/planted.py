"""Code planted where a run reads: it makes a marker, an empty folder, if anybody runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class Planted:
    """An object whose pickle, when it is loaded, makes `marker`."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._marker),)


def plant_in_torch_file(file: Path, marker: Path) -> None:
    """Add such an object to the mapping in a file that torch wrote, which stays whole otherwise."""
    state = torch.load(file, weights_only=False)
    torch.save({**state, "planted": Planted(marker)}, file)


def plant_module(file: Path, marker: Path) -> Path:
    """Write a module with a class `Strange`, which makes `marker` when it is imported; returns the marker."""
    file.write_text(f"import os\nos.mkdir({str(marker)!r})\n\n\nclass Strange:\n    pass\n")
    return marker
