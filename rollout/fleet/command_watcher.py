"""Hands the commands of a run folder to the fleet."""

from __future__ import annotations

import threading

from common.errors import RollcallError
from rollout.command_file import CommandFile, FleetState
from rollout.fleet.crew import Crew
from rollout.fleet.thread import LoopThread

CALL_S = 30.0


class CommandWatcher:
    """A thread that hands commands of a run folder to the fleet. A disk that hangs holds up nobody else."""

    def __init__(self, file: CommandFile, thread: LoopThread, crew: Crew) -> None:
        self._file, self._loop, self._crew = file, thread, crew
        self._over = threading.Event()
        self._said: FleetState | None = None
        self._thread = threading.Thread(target=self._watch, name="engines command", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(self._file.every_s):
            try:
                self._look()
            except (OSError, RollcallError):  # the disk or the fleet is busy: the next look may be luckier
                continue

    def _look(self) -> None:
        command = self._file.read()
        state = self._loop.call(self._crew.describe(), what="the engines to be counted", timeout_s=CALL_S)
        if command and command != state.command:
            self._loop.call(self._crew.command(command), what="a command to be followed", timeout_s=CALL_S)
            state = self._loop.call(self._crew.describe(), what="the engines to be counted", timeout_s=CALL_S)
        if state != self._said:
            self._file.write_state(state)
            self._said = state

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join(1.0)
