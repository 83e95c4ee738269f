"""The journal that `rollout.replay` names: whether this run can follow it, told before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.config.foreign_text import parse_yaml
from common.config.schema import Config, incompatible_keys
from common.data.sources import ExampleSource
from common.data.stream import check_rows
from common.errors import RunFolderError, raise_as
from learner.driver.control.journal import JOURNAL, REMEDY, Journal


def open_replay(config: Config, train: ExampleSource, *, say: Callable[[str], None]) -> Journal | None:
    """Open the journal of the run that is to be repeated; None where none is.

    Raises:
        RunFolderError: there is no such journal, or its run had settings that decide something.
        DataError: it is damaged, or was written on other rows.
    """
    if config.rollout.replay is None:
        return None
    folder = Path(config.rollout.replay)
    what = f"rollout.replay = {folder} cannot be followed"
    with raise_as(RunFolderError, what, remedy=REMEDY):
        journal = Journal(folder)
        if not journal.steps:
            raise RunFolderError(what, got=f"{folder / JOURNAL} holds no step", remedy=REMEDY)
        if not (folder / "config.yaml").exists():
            raise RunFolderError(what, got=f"there is no config.yaml beside {JOURNAL}", remedy=REMEDY)
        old = Config.model_validate(parse_yaml((folder / "config.yaml").read_text()))

    changed = incompatible_keys(old, config)
    changed.pop("data.path", None)  # the rows themselves are compared
    if changed:
        raise RunFolderError(
            what,
            got="; ".join(f"{key}: {before!r} there, {after!r} here" for key, (before, after) in changed.items()),
            remedy="set these keys as they were; others may differ, the number of engines among them",
        )
    check_rows(journal.read_stream(), train)
    say(f"replay: the answers of {journal.steps} of {config.steps} steps come from {journal.path}")
    return journal
