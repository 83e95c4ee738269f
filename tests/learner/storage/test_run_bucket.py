"""A run folder in a bucket: its lock, its copy on this host, and checkpoints that are whole or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.config.schema import Config
from common.errors import CheckpointError, ConfigError, ModelError, RunFolderError
from common.storage.bucket import BucketFolder
from common.storage.output import WriteReport, open_output, read_folder
from learner.evaluation.args import parse as parse_evaluation
from learner.main import main
from learner.report.__main__ import main as report
from learner.storage import bucket_lock, mirror
from learner.storage.bucket_lock import BucketLock
from learner.storage.checkpoint import DriverState, read_state, write_state
from learner.storage.checkpoint_bucket import CheckpointBucket
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.resume import find_resume_point, open_checkpoints
from learner.storage.run_folder import RunFolder
from tests.helpers.s3 import S3Server

pytestmark = pytest.mark.slow

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture
def place(
    s3: S3Server, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BucketFolder:
    """A folder of the bucket for this test alone, and a cache of this host."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return s3.place(f"{request.node.name.replace('[', '-').replace(']', '').replace(' ', '-')}/run")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that beat every fifth of a second, and are dead after two."""
    monkeypatch.setattr(bucket_lock, "BEAT_S", 0.2)
    monkeypatch.setattr(bucket_lock, "DEAD_S", 2.0)
    monkeypatch.setattr(bucket_lock, "_SETTLE_S", 0.1)


def opened(place: BucketFolder, *, resume: str | None = None) -> RunFolder:
    return RunFolder.open(Config(run_dir=str(place), resume=resume), now=NOW)


def store_of(place: BucketFolder, *, keep: int = 2, before: Callable[[], None] = lambda: None) -> CheckpointBucket:
    return CheckpointBucket(place / "checkpoints", keep=keep, before_commit=before)


def save(store: CheckpointStore, step: int, *, score: float | None = None, weights: bytes = b"w" * 1000) -> None:
    with store.write_checkpoint(step, score=score, estimate=0) as draft:
        reports = []
        for rank in range(2):
            output = open_output(draft.place)
            with output.open(f"deepspeed/rank-{rank}.pt") as file:
                file.write(weights)
            reports.append(WriteReport(by=f"rank {rank}", files=tuple(output.files)))
        draft.reports = reports
        draft.own = write_state(draft.place, DriverState(step=step, config=Config(), stream={}, counts={}, control={}))


def names(place: BucketFolder) -> list[str]:
    """Objects below the checkpoints, with `*` for the name of an attempt."""
    found = [name.split("/") for name in (place / "checkpoints").list_objects()]
    return sorted("/".join("*" if len(part) == 16 else part for part in parts) for parts in found)


def test_a_checkpoint_is_its_manifest(place: BucketFolder) -> None:
    store = store_of(place)
    assert store.find_newest() is None
    save(store, 5)
    assert names(place) == [
        "step-000005/*/deepspeed/rank-0.pt",
        "step-000005/*/deepspeed/rank-1.pt",
        "step-000005/*/state.json",
        "step-000005/manifest.json",
    ]
    manifest = store.find_newest()
    assert manifest is not None and manifest.step == 5
    assert read_state(store.files_of(manifest)).step == 5
    (own,) = (report.files for report in manifest.reports if report.by == "rank 1")
    with read_folder(store.files_of(manifest), own) as folder:
        assert [path.name for path in folder.rglob("*.pt")] == ["rank-1.pt"]


def test_the_last_k_and_the_best_are_kept(place: BucketFolder) -> None:
    store = store_of(place)
    for step, score in ((10, 0.5), (20, 0.8), (30, None), (40, 0.8), (50, 0.7)):
        save(store, step, score=score)
    assert store.steps() == [20, 40, 50]
    assert (store.find_best(), store.best_score()) == (20, 0.8)
    assert len(names(place)) == 3 * 4 + 1


class CutShortError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("existing", [False, True])
def test_a_write_that_is_cut_short_changes_nothing(
    place: BucketFolder, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    """Killed before its manifest, also over a checkpoint of the same step: what was there is there, and no more."""
    save(store_of(place), 5)
    step = 5 if existing else 10
    before = sorted((place / "checkpoints").list_objects())

    def cut() -> None:
        raise CutShortError

    store = store_of(place, before=cut)
    monkeypatch.setattr(store, "_discard", lambda draft: None)  # a kill cleans nothing up
    with pytest.raises(CutShortError):
        save(store, step, weights=b"other")
    assert len((place / "checkpoints").list_objects()) == len(before) + 3
    again = store_of(place)
    assert sorted((place / "checkpoints").list_objects()) == before, "leftovers go at the next start"
    assert again.verify(5).step == 5


def test_a_kill_after_the_manifest_leaves_the_new_one(place: BucketFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(place)
    save(store, 5)

    def cut() -> None:
        raise CutShortError

    monkeypatch.setattr(store, "_remove_unnamed", cut)
    with pytest.raises(CutShortError):
        save(store, 5, weights=b"other")
    again = store_of(place)
    assert again.verify(5).files[1].bytes == len(b"other")
    assert len(names(place)) == 4


def test_a_removal_that_is_cut_short_is_finished(place: BucketFolder) -> None:
    store = store_of(place)
    save(store, 5)
    save(store, 10)
    (place / "checkpoints/step-000005").delete("manifest.json")
    assert store_of(place).steps() == [10]
    assert len(names(place)) == 4


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder, name: folder.write(name, b"v" * 1000), "is damaged"),
        (lambda folder, name: folder.write(name, b"w"), "has 1 bytes instead of 1000"),
        (lambda folder, name: folder.delete(name), "is missing"),
    ],
)
def test_a_damaged_newest_is_passed_over(
    place: BucketFolder, caplog: pytest.LogCaptureFixture, damage: Callable[[BucketFolder, str], None], why: str
) -> None:
    store = store_of(place)
    save(store, 5)
    save(store, 10)
    damage(store.files_of(store.verify(10)), "deepspeed/rank-1.pt")
    found = store.find_newest()
    assert found is not None and found.step == 5
    assert f"deepspeed/rank-1.pt {why}" in caplog.text
    save(store, 11)
    assert store.steps() == [5, 11]


def test_a_manifest_that_leads_outside_is_not_followed(place: BucketFolder) -> None:
    store = store_of(place)
    save(store, 5)
    text = json.loads((place / "checkpoints/step-000005").read("manifest.json"))
    for change in ({"attempt": "../step-000001"}, {"files": text["files"] | {"../x": text["files"]["state.json"]}}):
        (place / "checkpoints/step-000005").write("manifest.json", json.dumps(text | change).encode())
        with pytest.raises(CheckpointError, match="outside of it"):
            store.verify(5)


def test_the_folder_of_a_run_is_copied_and_brought_down(place: BucketFolder, quick: None) -> None:
    folder = opened(place)
    folder.begin(Config(name="a"))
    (folder.path / "samples").mkdir()
    (folder.path / "samples/000001-0.png").write_bytes(b"picture")
    (folder.path / "metrics.jsonl").write_text('{"step": 0}\n')
    folder.flush()
    save(open_checkpoints(Config(), folder), 1)
    (place / "export").write("model.safetensors", b"weights")
    folder.close()
    small = ["config.yaml", "environment.json", "metrics.jsonl", "samples/000001-0.png"]
    assert sorted(name for name in place.list_objects() if "/step" not in name) == sorted(
        [*small, "export/model.safetensors"]
    )
    with pytest.raises(RunFolderError, match=r"not empty(.|\n)*resume=auto"):
        opened(place)
    (folder.path / "metrics.jsonl").write_text("of another start")
    again = opened(place, resume="auto")
    assert again.path == folder.path and again.address == again.shown == str(place)
    assert sorted(str(path.relative_to(again.path)) for path in again.path.rglob("*") if path.is_file()) == sorted(
        [".home", ".lock", *small]
    )
    assert (again.path / "metrics.jsonl").read_text() == '{"step": 0}\n'
    (again.path / "samples/000001-0.png").unlink()  # of a step that is taken again
    again.flush()
    assert "samples/000001-0.png" not in place.list_objects()
    assert "export/model.safetensors" in place.list_objects()
    point = find_resume_point(Config(resume="auto"), again, open_checkpoints(Config(), again))
    assert point is not None and point.state.step == 1
    again.close()
    for resume in (f"{place}".replace("/run?", "/run/checkpoints/step-000001?"), str(place)):
        named = RunFolder.open(Config(resume=resume), now=NOW)
        assert named.bucket is not None and named.bucket.place == place
        assert named.step == (1 if "step-" in resume else None)
        named.close()
    assert not [name for name in place.list_objects() if name.startswith(".")]


def test_an_upload_that_fails_is_told_once_and_done_later(
    place: BucketFolder, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "EVERY_S", 0.0)
    folder = opened(place)
    (folder.path / "metrics.jsonl").write_text("1\n")
    with monkeypatch.context() as patch:
        patch.setattr(BucketFolder, "write", lambda *_: (_ for _ in ()).throw(OSError("the server is away")))
        assert folder.push() is None
        wait_for_mirror()
        with pytest.raises(OSError, match="away"):
            folder.flush()
    assert folder.push() == "the server is away"
    deadline = time.monotonic() + 20
    while "metrics.jsonl" not in place.list_objects():
        assert time.monotonic() < deadline
        assert folder.push() is None
        wait_for_mirror()
    assert place.read("metrics.jsonl") == b"1\n"
    folder.close()


def wait_for_mirror() -> None:
    for thread in threading.enumerate():
        if thread.name == "run-folder-mirror":
            thread.join(20)


_HOLD = """
import sys
from datetime import datetime
from common.config.schema import Config
from learner.storage import bucket_lock
from learner.storage.run_folder import RunFolder
bucket_lock.BEAT_S = 0.5
folder = RunFolder.open(Config(run_dir=sys.argv[1]), now=datetime.now())
folder.begin(Config())
folder.flush()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(place: BucketFolder, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A live run of another host: with a cache of its own."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "other"), "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_two_live_runs_are_refused_and_a_killed_one_is_waited_for(
    place: BucketFolder, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lock, "DEAD_S", 6.0)  # twelve beats of the holder
    for resume in (None, "auto"):
        with pytest.raises(RunFolderError, match="in use by a live run") as caught:
            opened(place, resume=resume)
        assert f"held by pid {holder.pid} on " in str(caught.value.got)
    holder.kill()
    holder.wait(10)
    opened(place, resume="auto").close()


def test_a_run_killed_on_this_host_frees_its_folder_at_once(
    place: BucketFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lock, "DEAD_S", 600.0)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, "-c", _HOLD, str(place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        with pytest.raises(RunFolderError, match="in use by a live run"):
            opened(place, resume="auto")
        process.kill()
        process.wait(10)
    opened(place, resume="auto").close()


def test_a_run_whose_lock_was_taken_saves_no_more(place: BucketFolder, quick: None) -> None:
    first = opened(place)
    store = open_checkpoints(Config(), first)
    save(store, 1)
    place.write(".lock", b'{"id": "another", "pid": 7, "host": "far"}')
    with pytest.raises(RunFolderError, match=r"in use by a live run(.|\n)*pid 7 on far"):
        save(store, 2)
    assert store.steps() == [1]
    first.close()
    assert json.loads(place.read(".lock"))["id"] == "another"


def test_of_two_that_begin_at_once_one_is_refused(place: BucketFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_lock, "_SETTLE_S", 0.5)
    taken: list[BucketLock] = []
    refused: list[Exception] = []

    def take(home: str) -> None:
        try:
            taken.append(BucketLock(place, home=home))
        except RunFolderError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(home,)) for home in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(taken), len(refused)) == (1, 1)
    taken[0].release()


def test_an_export_in_a_bucket_is_evaluated_from_this_hosts_cache(place: BucketFolder) -> None:
    """Configuration and export come here, and nothing else; a run without one is refused, as is `--out` in a bucket."""
    place.write("config.yaml", b"name: of-the-run\n")
    place.write("checkpoints/step-000001/manifest.json", b"{}")
    asked = ["--model", str(place), "--data", "embedded:digits@test"]
    with pytest.raises(ModelError, match="has no model to evaluate"):
        parse_evaluation(asked)
    place.write("export/config.json", b"{}")
    place.write("export/model.safetensors", b"weights")
    (config,) = parse_evaluation(asked).models.values()
    assert config.name == "of-the-run"
    export = Path(config.model.path)
    assert (export / "model.safetensors").read_bytes() == b"weights"
    assert sorted(path.name for path in export.parent.iterdir()) == ["config.yaml", "export"]
    place.write("export/model.safetensors", b"newer")
    parse_evaluation(asked)
    assert (export / "model.safetensors").read_bytes() == b"newer"
    with pytest.raises(ConfigError, match="--out takes a folder"):
        parse_evaluation([*asked, "--out", str(place)])


def test_a_report_of_nothing_is_refused(place: BucketFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(place)]) == 2
    assert f"nothing is in {place}" in capsys.readouterr().err


def test_a_dry_run_tries_the_bucket(place: BucketFolder, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(place).replace("//runs/", "//nobucket/")
    assert main([f"run_dir={url}", "--dry-run"]) == 2
    assert "NO_SUCH_BUCKET" in capsys.readouterr().err
