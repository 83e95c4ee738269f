"""Saving on a schedule, through failures, and refusing to go on with another experiment."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config.schema import Config
from common.errors import CheckpointError
from common.storage.output import Place, WriteReport, open_output
from learner.storage.checkpoint import Checkpointer, DriverState, check_compatible, read_state, write_state
from learner.storage.checkpoint_folder import CheckpointFolder

CONFIG = Config(steps=20)


def state(step: int) -> DriverState:
    return DriverState(
        step=step,
        config=CONFIG,
        stream={"epoch": 1, "position": 7, "order": [3, 1, 2]},
        counts={"dispatched": 64, "trained": 63, "dropped": 1},
        control={"steering": {"beta": 0.04, "below_floor": 0.0}},
    )


class Events(list[dict[str, Any]]):
    def __call__(self, kind: str, **fields: Any) -> None:
        self.append({"kind": kind, **fields})


def checkpointer(folder: Path, *, every: int = 5, estimate: int = 100) -> tuple[Checkpointer, Events]:
    events = Events()
    store = CheckpointFolder(folder, keep=2)
    return Checkpointer(store, every=every, estimate=lambda: estimate, on_event=events), events


Saved = tuple[DriverState, list[WriteReport]]


def save_at(step: int) -> Callable[[Place], Saved]:
    def save(place: Place) -> Saved:
        output = open_output(place)
        with output.open("weights") as file:
            file.write(b"w" * 100)
        return state(step), [WriteReport(by="rank 0", files=tuple(output.files))]

    return save


def test_state_survives_the_disk(tmp_path: Path) -> None:
    write_state(tmp_path, state(5))
    assert read_state(tmp_path) == state(5)


def test_the_solve_rates_of_many_rows_take_little_room(tmp_path: Path) -> None:
    rows = {f"train/{row}": [row % 16 * 0.5, 24.0, row % 3, 2] for row in range(10_000)}
    written = state(5)
    write_state(tmp_path, replace(written, control={**written.control, "solve_rates": rows}))
    assert (tmp_path / "state.json").stat().st_size < 32 * len(rows)
    assert read_state(tmp_path).control["solve_rates"] == rows


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 5}', '{"config_hash": "x", "config": {"setps": 1}}'])
def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_state(tmp_path)


def test_saves_every_n_steps_and_the_best(tmp_path: Path) -> None:
    saver, events = checkpointer(tmp_path)
    accuracies = {2: 0.3, 5: 0.2, 7: 0.9, 8: 0.9, 15: 0.1}
    saved = [step for step in range(1, 21) if saver.maybe_save(step, save=save_at(step), score=accuracies.get(step))]
    assert saved == [2, 5, 7, 10, 15, 20]
    assert saver.store.steps() == [7, 15, 20]  # the best, and the last two
    assert saver.store.find_best() == 7
    assert [event["step"] for event in events] == saved
    found = saver.store.find_newest()
    assert found is not None and read_state(saver.store.files_of(found)).step == 20


def test_every_0_keeps_none_and_due_forces_one(tmp_path: Path) -> None:
    saver, _ = checkpointer(tmp_path / "none", every=0)
    assert not saver.maybe_save(5, save=save_at(5), due=True, score=1.0)
    saver, _ = checkpointer(tmp_path / "some")
    assert saver.maybe_save(3, save=save_at(3), due=True)


def test_a_failed_save_is_counted_and_retried_with_backoff(tmp_path: Path) -> None:
    saver, events = checkpointer(tmp_path, every=100)
    tried = []

    def save_now(step: int) -> Callable[[Place], Saved]:
        def save(folder: Place) -> Saved:
            tried.append(step)
            assert isinstance(folder, Path)
            (folder / "half").write_bytes(b"x")
            if step < 110:
                raise OSError(28, "No space left on device")
            return save_at(step)(folder)

        return save

    saved = [step for step in range(95, 120) if saver.maybe_save(step, save=save_now(step))]
    assert tried == [100, 101, 103, 107, 115]
    assert saved == [115]
    assert saver.failures == 4
    assert [event["kind"] for event in events] == ["checkpoint_failed"] * 4 + ["checkpoint"]
    assert events[0]["retry_at"] == 101 and "No space left" in events[0]["why"] and "MB free" in events[0]["why"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000115"]


def test_a_disk_too_full_for_the_first_checkpoint_is_found_before_it_is_written(tmp_path: Path) -> None:
    """No rank may spend minutes on a file that cannot become whole; training goes on, and the save is tried again."""
    free = shutil.disk_usage(tmp_path).free
    saver, events = checkpointer(tmp_path / "large", estimate=2 * free)

    def save(folder: Place) -> Saved:
        pytest.fail("nothing may be written")

    assert not saver.maybe_save(5, save=save)
    assert (saver.failures, events[0]["kind"], events[0]["retry_at"]) == (1, "checkpoint_failed", 6)
    assert "no room for a checkpoint" in events[0]["why"] and "MB needed" in events[0]["why"]
    assert list((tmp_path / "large").iterdir()) == []
    saver, _ = checkpointer(tmp_path / "small", estimate=1000)
    assert saver.maybe_save(5, save=save_at(5))


def test_an_error_that_is_not_the_disks_is_not_swallowed(tmp_path: Path) -> None:
    saver, _ = checkpointer(tmp_path)

    def save(folder: Place) -> Saved:
        raise RuntimeError("a rank is dead")

    with pytest.raises(RuntimeError, match="a rank is dead"):
        saver.maybe_save(5, save=save)
    assert list(tmp_path.iterdir()) == []


def test_another_experiment_is_refused_by_key() -> None:
    other = Config(steps=20, seed=2, learner={"lr": 1e-3, "cpus_per_rank": 2})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError) as caught:
        check_compatible(CONFIG, other)
    assert str(caught.value.got) == "learner.lr: 1e-06 then, 0.001 now; seed: 1 then, 2 now"
    check_compatible(CONFIG, Config(steps=20, name="other"))


@pytest.mark.slow
def test_a_file_that_a_rank_wrote_elsewhere_makes_no_checkpoint(tmp_path: Path) -> None:
    """Its host has another folder under the same path; training goes on, and the event names host and file."""
    saver, events = checkpointer(tmp_path / "driver")

    def save(folder: Place) -> Saved:
        reports = []
        for rank, place in enumerate((folder, tmp_path / "other host")):
            output = open_output(place)
            with output.open(f"rank-{rank}.pt") as file:
                file.write(b"w" * 100)
            reports.append(WriteReport(by=f"rank {rank}", host=f"host-{rank}", files=tuple(output.files)))
        return state(5), reports

    assert not saver.maybe_save(5, save=save)
    (event,) = events
    assert event["kind"] == "checkpoint_failed"
    assert "rank 1 on host-1 wrote rank-1.pt (100 bytes), this process on" in event["why"]
    assert list((tmp_path / "driver").iterdir()) == []
