"""`--profile steps=3:5`: a trace of what every process did in steps 3 and 4, and of what Ray did in the whole run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from common.command import say
from common.config.schema import Config
from common.errors import LearnerLostError, RollcallError, RunFolderError
from common.storage.output import Place, WriteReport, find_unseen, write_folder


class Profiled(Protocol):
    """Processes with a recorder each: the ranks of the learner, the engines of the fleet."""

    def start_profile(self) -> None: ...

    def stop_profile(self, place: Place) -> list[WriteReport]: ...


class Profiler:
    """Starts and stops all recorders, if `tracking.profile_steps` is set. Its faults are printed, and end no run."""

    def __init__(self, config: Config, place: Place, recorded: Sequence[Profiled]) -> None:
        self._first, self._end = config.tracking.profile_steps or (sys.maxsize, sys.maxsize)
        self._place, self._recorded = place, recorded
        self._running = False

    def begin_step(self, step: int) -> None:
        """Start or stop recording, where step `step` is the first or the one after the last."""
        if self._first <= step < self._end and not self._running:
            self._running = True
            self._call(lambda processes: processes.start_profile())
        elif step >= self._end:
            self.stop()

    def stop(self) -> None:
        """Write rank-0.json.gz, engine-0.json.gz and so on, and ray-timeline.json, if anything was recorded."""
        if not self._running:
            return
        self._running = False
        import ray

        self._call(lambda processes: self._require(processes.stop_profile(self._place)))
        logging.getLogger("ray._private.state").setLevel(logging.ERROR)  # it announces a change that is to come
        try:
            with write_folder(self._place) as folder:
                folder.mkdir(exist_ok=True)
                ray.timeline(str(folder / "ray-timeline.json"))
        except OSError as error:
            say(f"the profile is not complete: {error}", file=sys.stderr)

    def _require(self, reports: Sequence[WriteReport]) -> None:
        """Raise RunFolderError unless every file that was reported is at the place."""
        if unseen := find_unseen(self._place, reports):
            raise RunFolderError(
                "a profile is not in the run folder", got=unseen, remedy="give run_dir a folder that every host mounts"
            )

    def _call(self, method: Callable[[Profiled], None]) -> None:
        """Call a method of ranks and engines; an engine that died or a full disk is printed."""
        import ray

        for processes in self._recorded:
            try:
                method(processes)
            except LearnerLostError:
                raise
            except (RollcallError, OSError, ray.exceptions.RayError) as error:
                say(f"the profile is not complete: {error}", file=sys.stderr)
