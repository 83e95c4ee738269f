"""`--profile steps=3:5`: what every process did in some steps, and what Ray did in the whole run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.config.schema import Config
from common.errors import RollcallError


class Recorded(Protocol):
    """Processes with a recorder each: the learner's ranks, the fleet's engines."""

    def start_profile(self) -> None: ...

    def stop_profile(self, folder: Path) -> None: ...


class Profiler:
    """Starts and stops all recorders. It does nothing when nobody asked, and its faults never end a run."""

    def __init__(self, config: Config, folder: Path, recorded: Sequence[Recorded]) -> None:
        self._first, self._end = config.tracking.profile_steps or (sys.maxsize, sys.maxsize)
        self._folder, self._recorded = folder, recorded
        self._running = False

    def at(self, step: int) -> None:
        """`step` is about to begin."""
        if self._first <= step < self._end and not self._running:
            self._running = True
            self._all("start_profile")
        elif step >= self._end:
            self.stop()

    def stop(self) -> None:
        """Write what was recorded, if anything was: rank-0.json.gz, engine-0.json.gz and so on, ray-timeline.json."""
        if not self._running:
            return
        self._running = False
        import ray

        self._all("stop_profile", self._folder)
        logging.getLogger("ray._private.state").setLevel(logging.ERROR)  # it announces a change that is to come
        try:
            self._folder.mkdir(exist_ok=True)
            ray.timeline(str(self._folder / "ray-timeline.json"))
        except OSError as error:
            print(f"the profile is not complete: {error}", file=sys.stderr)

    def _all(self, method: str, *args: Path) -> None:
        import ray

        for processes in self._recorded:
            try:
                getattr(processes, method)(*args)
            except (
                RollcallError,
                OSError,
                ray.exceptions.RayError,
            ) as error:  # an engine may have died, a disk be full
                print(f"the profile is not complete: {error}", file=sys.stderr)
