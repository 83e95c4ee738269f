"""Only whole checkpoints, whatever kills the writer, fills the disk or flips a bit."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.storage.output import FolderOutput, WriteReport
from learner.storage.checkpoint_folder import CheckpointFolder


def save(store: CheckpointFolder, step: int, *, accuracy: float | None = None, size: int = 3000) -> None:
    with store.write_checkpoint(step, score=accuracy, estimate=0) as draft:
        assert isinstance(draft.place, Path)
        output = FolderOutput(draft.place)
        with output.open("rank0/weights") as file:
            file.write(step.to_bytes(4, "big") * (size // 4))
        draft.reports = [WriteReport(by="rank 0", files=tuple(output.files))]
        own = FolderOutput(draft.place)
        with own.open("state.json") as file:
            file.write(json.dumps({"step": step}).encode())
        draft.own = WriteReport(by="driver", files=tuple(own.files))


def newest(store: CheckpointFolder) -> int:
    """The step of the newest sound checkpoint, 0 of none."""
    found = store.find_newest()
    return found.step if found else 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_hashed_and_verified(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    assert store.find_newest() is None
    save(store, 50)
    assert newest(store) == 50
    found = tmp_path / "checkpoints" / "step-000050"
    manifest = json.loads((found / "manifest.json").read_text())
    assert manifest["files"].keys() == {"rank0/weights", "state.json"}
    assert manifest["ranks"] == 1
    weights = found / "rank0" / "weights"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["files"]["rank0/weights"] == {"by": "rank 0", "bytes": 3000, "sha256": digest}
    assert manifest["files"]["state.json"]["by"] == "driver"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: _flip(path / "rank0" / "weights"), "rank0/weights is damaged"),
        (lambda path: os.truncate(path / "rank0" / "weights", 100), "rank0/weights has 100 bytes instead of 3000"),
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: os.truncate(path / "manifest.json", 40), "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").write_text('{"format": 9, "step": 3, "files": {}}'), "of format 9"),
        (lambda path: (path / "manifest.json").write_text('{"format": 2, "step": 2, "files": {}}'), "step 000002"),
        (shutil.rmtree, None),
    ],
)
def test_a_damaged_newest_is_named_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], reason: str | None
) -> None:
    store = CheckpointFolder(tmp_path, keep=3)
    for step in (1, 2, 3):
        save(store, step)
    damage(store.place(3))
    assert newest(store) == 2
    if reason is None:
        assert caplog.text == ""
        return
    (told,) = caplog.messages
    assert "step-000003 is passed over" in told and reason in told
    with pytest.raises(CheckpointError, match="step-000003 is not sound"):
        store.verify(3)


def rewrite(path: Path, **changes: object) -> None:
    """Change the manifest of a checkpoint, as a version that counts otherwise would have written it."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ranks": 2}, "it holds no file of rank 1"),
        ({"ranks": 0}, "it holds no file of any rank"),
        ({"ranks": 2, "files": {}}, "it holds no file of driver"),
        ({"format": 1}, "of format 1"),
    ],
)
def test_a_checkpoint_is_sound_only_with_files_of_every_rank(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    save(store, 1)
    rewrite(store.place(1), **changes)
    with pytest.raises(CheckpointError, match=reason):
        store.verify(1)


def test_a_checkpoint_of_no_rank_is_not_sealed_as_sound(tmp_path: Path) -> None:
    """What a run wrote whose ranks had another disk under the same path: a state, and no weights."""
    store = CheckpointFolder(tmp_path, keep=2)
    save(store, 1)
    for reports in ([], [WriteReport(by="rank 0", files=())]):
        with pytest.raises(CheckpointError, match="lacks a file"), store.write_checkpoint(2, estimate=0) as draft:
            draft.reports = reports
    assert store.steps() == [1]


@pytest.mark.parametrize("name", ["rank0/weights", "state.json", "manifest.json"])
def test_any_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    save(store, 1, size=200)
    file = store.place(1) / name
    sound = file.read_bytes()
    for index, byte in enumerate(sound):
        if not chr(byte).isspace():  # between two tokens of JSON a flipped bit may be another blank
            file.write_bytes(sound[:index] + bytes([byte ^ 1 << index % 8]) + sound[index + 1 :])
            with pytest.raises(CheckpointError):
                store.verify(1)


def test_with_none_sound_it_does_not_start_over(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    save(store, 1)
    (store.place(1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints is sound"):
        store.find_newest()


def test_the_last_k_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    for step, accuracy in ((10, 0.5), (20, 0.8), (30, None), (40, 0.8), (50, 0.7)):
        save(store, step, accuracy=accuracy)
    assert names(tmp_path) == ["best.json", "step-000020", "step-000040", "step-000050"]
    assert (store.find_best(), store.best_score()) == (20, 0.8)


def test_the_best_by_one_measure_is_not_the_best_by_another(tmp_path: Path) -> None:
    """`checkpoint.best_by` may change over a resume; scores of two measures are not held against each other."""
    save(CheckpointFolder(tmp_path, keep=1), 10, accuracy=0.9)
    store = CheckpointFolder(tmp_path, keep=1, best_by="H")
    assert (store.find_best(), store.best_score()) == (None, float("-inf"))
    save(store, 20, accuracy=0.4)
    save(store, 30, accuracy=0.3)
    assert names(tmp_path) == ["best.json", "step-000020", "step-000030"]
    assert CheckpointFolder(tmp_path, keep=1, best_by="H").find_best() == 20


def test_a_lost_future_goes_when_a_new_one_is_written(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    for step in (10, 20, 30):
        save(store, step)
    (store.place(30) / "state.json").unlink()
    assert newest(CheckpointFolder(tmp_path, keep=2)) == 20  # a resumed run goes on from there ...
    save(store, 25)  # ... and saves elsewhere
    assert names(tmp_path) == ["step-000020", "step-000025"]
    save(store, 25, size=400)  # over one that is there
    store.verify(25)
    assert (store.place(25) / "rank0" / "weights").stat().st_size == 400


def test_an_unsound_one_does_not_count_among_the_kept(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    save(store, 10)
    save(store, 20)
    (store.place(20) / "state.json").unlink()
    store.find_newest()
    save(store, 30)
    assert store.steps() == [10, 30]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    for left in (".writing-000010", ".removing-000005"):
        (tmp_path / left / "rank0").mkdir(parents=True)
    assert CheckpointFolder(tmp_path, keep=2).find_newest() is None
    assert names(tmp_path) == []


def test_a_kill_between_the_old_one_of_a_step_and_the_new_one_leaves_the_old(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    save(store, 10)
    (tmp_path / "step-000010").rename(tmp_path / ".replaced-000010")
    (tmp_path / ".writing-000010").mkdir()
    assert newest(CheckpointFolder(tmp_path, keep=2)) == 10
    shutil.copytree(tmp_path / "step-000010", tmp_path / ".replaced-000010")  # and a kill after both
    assert newest(CheckpointFolder(tmp_path, keep=2)) == 10
    assert names(tmp_path) == ["step-000010"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    with pytest.raises(KeyboardInterrupt), store.write_checkpoint(1, estimate=0):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


KILLS = 50


def write_forever(folder: str, report: str) -> None:
    """Save again and again; report each step that is safe as four bytes."""
    reports = os.open(report, os.O_WRONLY)
    store = CheckpointFolder(Path(folder), keep=2)
    step = newest(store)
    while True:
        step += 1
        save(store, step, accuracy=step / 1e6 if step % 3 else None)
        os.pwrite(reports, step.to_bytes(4, "big"), 0)


@pytest.mark.slow
def test_sigkill_at_any_instant_loses_one_at_most(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    folder, report, rng = tmp_path / "checkpoints", tmp_path / "report", random.Random(0)
    report.write_bytes(bytes(4))
    reached = 0
    for _ in range(KILLS):
        process = context.Process(target=write_forever, args=(str(folder), str(report)))
        process.start()
        time.sleep(0.04 + rng.random() * 0.1)
        process.kill()
        process.join(10)
        assert process.exitcode == -9
        safe = max(reached, int.from_bytes(report.read_bytes(), "big"))  # a kill may fall between rename and report
        reached = newest(CheckpointFolder(folder, keep=2))
        assert not list(folder.glob(".*-0*"))
        assert safe <= reached <= safe + 1
        store = CheckpointFolder(folder, keep=2)
        for step in store.steps():
            store.verify(step)
    assert reached > KILLS  # it did write


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 1 MiB: a real one if we may mount, else files limited to 300 kB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "rollcall-test", str(folder)]
    mounted = False
    with suppress(FileNotFoundError):
        mounted = subprocess.run(mount, capture_output=True, timeout=10).returncode == 0  # noqa: PLW1510
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if mounted:
        subprocess.run(["umount", str(folder)], check=True, timeout=10)


def test_a_full_disk_is_refused_with_numbers_and_cleaned_up(small_volume: Path) -> None:
    store = CheckpointFolder(small_volume / "checkpoints", keep=1)
    save(store, 1, size=100_000)
    with pytest.raises(CheckpointError, match=r"checkpoint 2 could not be written") as caught:
        save(store, 2, size=2_000_000)
    assert "MB free" in str(caught.value.got) and "MB needed" in str(caught.value.got)
    assert names(store.root) == ["step-000001"]
    save(store, 3, size=100_000)
    assert newest(store) == 3


def test_a_full_disk_that_hides_behind_another_error_is_seen(small_volume: Path) -> None:
    """torch.save raises RuntimeError("unexpected pos"), safetensors an error of its own and no partial file."""
    store = CheckpointFolder(small_volume / "checkpoints", keep=1)

    def like_torch(folder: Path) -> None:
        try:
            (folder / "weights").write_bytes(bytes(2_000_000))
        except OSError:
            raise RuntimeError("unexpected pos 576 vs 534") from None

    def like_safetensors(folder: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    for write in (like_torch, like_safetensors):
        with pytest.raises(CheckpointError), store.write_checkpoint(1, estimate=0):
            write(store._name_draft(1))  # noqa: SLF001
    assert names(store.root) == []


def test_room_is_asked_for_before_writing(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    assert store.has_room(10) and not store.has_room(1 << 60)
    with pytest.raises(CheckpointError, match="no room for a checkpoint"), store.write_checkpoint(1, estimate=1 << 60):
        pytest.fail("nothing may be written")
    free = os.statvfs(tmp_path)
    save(store, 1, size=4000)
    assert store.has_room(free.f_bavail * free.f_frsize // 2)
