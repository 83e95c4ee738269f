"""Which checkpoints of a run are kept, found and trusted, wherever they lie: in a folder or in a bucket."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.errors import CheckpointError, escape_unprintable
from common.storage.output import Place, WriteReport, find_unseen
from learner.storage.manifest import DRIVER, Manifest

BEST = "best.json"  # step and score of the checkpoint that is kept beyond the last k, and its measure
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Draft:
    """A checkpoint that is being written."""

    place: Place  # to write to, from any process
    reports: Sequence[WriteReport] = ()  # of the ranks, in rank order
    own: WriteReport | None = None  # of the driver


class CheckpointStore(ABC):
    """The checkpoints of one run. The lock of the run folder makes it their only writer."""

    def __init__(self, *, keep: int, best_by: str = "accuracy") -> None:
        """
        Args:
            keep: newest checkpoints kept.
            best_by: the measure of scores. The best by another measure is kept no longer than others.
        """
        self._keep, self._best_by = keep, best_by
        self._unsound: set[int] = set()

    @contextmanager
    def write_checkpoint(self, step: int, *, score: float | None = None, estimate: int) -> Iterator[Draft]:
        """Give a draft to write and to report in; at the end of the block it becomes checkpoint `step`.

        Args:
            score: of these weights by `best_by`, if known; the best is kept however old it is.
            estimate: bytes it will take; the size of the last checkpoint counts where it is the larger.

        Raises:
            CheckpointError: no room, the storage failed, or a file that a rank reported is not there. Nothing is left
                of the attempt, and nothing else changed.
        """
        self.require_room(estimate)
        draft = Draft(self._name_draft(step))
        try:
            self._begin(draft.place)
            yield draft
            self._commit(draft.place, _make_manifest(step, draft))
            self._unsound.discard(step)
            if score is not None and score > self.best_score():
                self._write(BEST, json.dumps({"step": step, "by": self._best_by, "score": score}) + "\n")
            self._prune(step)
        except Exception as error:
            if (why := self._explain(error, draft.place, estimate)) is None:
                raise
            raise CheckpointError(
                f"checkpoint {step} could not be written", got=why, remedy=f"make room at {self.root}, or bring it back"
            ) from error
        finally:  # Ctrl-C too leaves nothing behind
            self._discard(draft.place)

    def find_newest(self) -> Manifest | None:
        """Find the newest sound checkpoint, with each of its files verified; None if there is no checkpoint at all.

        Newer ones that are not sound are logged, and go when the next checkpoint is written.

        Raises:
            CheckpointError: there are checkpoints and not one is sound. To start afresh over them is not for us to say.
        """
        faults: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.verify(step)
            except CheckpointError as error:
                _log.warning("%s", escape_unprintable(f"checkpoint {self.place(step)} is passed over: {error.got}"))
                faults.append(f"step-{step:06}: {error.got}")
                self._unsound.add(step)
        if faults:
            raise CheckpointError(
                f"none of the {len(faults)} checkpoints is sound",
                got="; ".join(faults),
                remedy=f"restore one, or remove {self.root} to start this run afresh",
            )
        return None

    def verify(self, step: int) -> Manifest:
        """Check every file of a checkpoint against its manifest, and return that.

        Raises:
            CheckpointError: `got` names the first thing that is wrong.
        """
        try:
            manifest = self._read_manifest(step)
            fault = self._find_fault(manifest)
        except ValueError as error:
            fault = str(error)
        except OSError as error:
            fault = f"it cannot be read: {error}"
        if fault:
            raise CheckpointError(
                f"checkpoint {self.place(step)} is not sound",
                got=fault,
                remedy="resume from another one (resume=auto finds it)",
            )
        return manifest

    def find_best(self) -> int | None:
        """Return the step of the best checkpoint; None if there is none."""
        step = self._best().get("step")
        return step if isinstance(step, int) and step in self.steps() else None

    def best_score(self) -> float:
        """Return the score of the best checkpoint; -inf if there is none."""
        return self._best()["score"] if self.find_best() is not None else float("-inf")

    def _best(self) -> dict[str, Any]:
        """Return the contents of `best.json`; nothing where it is missing, damaged or of another measure."""
        try:
            best = parse_json(self._read(BEST))
            best["score"] = float(best["score"])
        except Exception:  # noqa: BLE001  # the file may be anybody's
            return {}
        return best if best.get("by") == self._best_by else {}

    def _prune(self, step: int) -> None:
        """Keep the last k and the best; remove the unsound, and later steps, which a resumed run takes again."""
        steps = self.steps()
        good = [old for old in steps if old <= step and old not in self._unsound]
        kept = {*good[-self._keep :], self.find_best()}
        for old in steps:
            if old not in kept or old > step:
                self._remove(old)

    # -- where the checkpoints lie --------------------------------------------------------------------------------

    root: Place  # below it lie all checkpoints

    @abstractmethod
    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, sound or not, oldest first. Raises OSError."""

    @abstractmethod
    def place(self, step: int) -> Place:
        """Return where the checkpoint of a step lies."""

    @abstractmethod
    def files_of(self, manifest: Manifest) -> Place:
        """Return where the files lie that a manifest names."""

    @abstractmethod
    def require_room(self, nbytes: int = 0) -> None:
        """Raise CheckpointError, with the numbers, where a checkpoint of so many bytes does not fit."""

    @abstractmethod
    def _name_draft(self, step: int) -> Place:
        """Return where the files of a checkpoint are to be written."""

    @abstractmethod
    def _begin(self, draft: Place) -> None:
        """Prepare a draft. Raises OSError."""

    @abstractmethod
    def _commit(self, draft: Place, manifest: Manifest) -> None:
        """Make a draft the checkpoint of its step, in one instant. Raises OSError."""

    @abstractmethod
    def _discard(self, draft: Place) -> None:
        """Remove what is left of a draft that was not committed."""

    @abstractmethod
    def _remove(self, step: int) -> None:
        """Remove a checkpoint; a kill within leaves no half one. Raises OSError."""

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """Read a small file of the root. Raises OSError."""

    @abstractmethod
    def _write(self, name: str, text: str) -> None:
        """Replace a small file of the root in one instant. Raises OSError."""

    @abstractmethod
    def _read_manifest(self, step: int) -> Manifest:
        """Read the manifest of a step. Raises OSError, or ValueError saying what is wrong with it."""

    @abstractmethod
    def _find_fault(self, manifest: Manifest) -> str | None:
        """Say which file of a checkpoint is missing, cut short or damaged; None where it is whole. Raises OSError."""

    @abstractmethod
    def _explain(self, error: Exception, draft: Place, estimate: int) -> str | None:
        """Say how the storage is to blame for an error; None where it is not."""


def _make_manifest(step: int, draft: Draft) -> Manifest:
    """Return the manifest of what driver and ranks reported and the driver sees.

    Raises CheckpointError where a rank reported nothing, or a file that is not here.
    """
    silent = [report.by for report in draft.reports if not report.files] or ([] if draft.reports else ["any rank"])
    if unseen := f"no file of {silent[0]}" if silent else find_unseen(draft.place, draft.reports):
        raise CheckpointError(
            f"checkpoint {step} lacks a file of a rank",
            got=unseen,
            remedy="give run_dir a place that every host reaches",
        )
    own = draft.own or WriteReport(by=DRIVER, files=())
    attempt = "" if isinstance(draft.place, Path) else draft.place.name
    return Manifest(step=step, ranks=len(draft.reports), reports=(own, *draft.reports), attempt=attempt)
