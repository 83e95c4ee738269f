"""A model folder of the driver's reaches other hosts whole, once a host, and is the same bytes there."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from common.errors import DeadlineError, ModelError
from common.shared_folder import SharedFolder, _lock, compute_digest, find_local, share_folder

pytestmark = pytest.mark.engine


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder like a model's, with a file of more than one piece, a link, and what nobody loads."""
    folder, draw = tmp_path / "model", random.Random(1)
    (folder / "extra").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(draw.randbytes(40 << 20))
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    (folder / "config.json").write_text("{}")
    (folder / "empty").touch()
    (folder / "extra" / "template.jinja").write_text("x")
    (folder / "pytorch_model.bin").write_bytes(b"old weights")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    return folder


@pytest.fixture
def shared(ray_session: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder as another host sees it: not under its path."""
    import ray

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shared = share_folder(str(model))
    yield SharedFolder(path="/nowhere/else", digest=shared.digest, server=shared.server)
    ray.kill(shared.server)


def test_the_copy_has_every_file_that_is_read_and_is_made_once(shared: SharedFolder, model: Path) -> None:
    copy = Path(find_local(shared, timeout_s=60))
    names = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
    assert names == ["config.json", "empty", "extra/template.jinja", "model.safetensors"]
    assert (copy / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not (copy / "model.safetensors").is_symlink()
    made = (copy / "model.safetensors").stat().st_mtime_ns
    assert find_local(shared, timeout_s=60) == str(copy)
    assert (copy / "model.safetensors").stat().st_mtime_ns == made
    assert [path.name for path in copy.parent.iterdir() if path.suffix != ".lock"] == [shared.digest]


def test_where_the_same_files_are_nothing_is_copied(shared: SharedFolder, model: Path, tmp_path: Path) -> None:
    here = SharedFolder(path=str(model), digest=shared.digest, server=None)
    assert find_local(here, timeout_s=1) == str(model)
    assert find_local("Qwen/Qwen2-VL-2B-Instruct", timeout_s=1) == "Qwen/Qwen2-VL-2B-Instruct"
    assert not (tmp_path / "cache").exists()


def test_other_bytes_under_the_same_path_are_not_taken(shared: SharedFolder, model: Path, tmp_path: Path) -> None:
    """Two hosts with a folder of the same name, sizes and all, one of them trained further."""
    stale = tmp_path / "stale"
    stale.mkdir()
    for name in ("config.json", "empty"):
        (stale / name).write_bytes((model / name).read_bytes())
    (stale / "extra").mkdir()
    (stale / "extra" / "template.jinja").write_text("x")
    (stale / "model.safetensors").write_bytes(random.Random(2).randbytes(40 << 20))
    here = SharedFolder(path=str(stale), digest=shared.digest, server=shared.server)
    assert find_local(here, timeout_s=60) == str(tmp_path / "cache" / "rollcall" / "models" / shared.digest)


def test_what_a_killed_copy_left_or_a_damaged_cache_is_made_anew(shared: SharedFolder, tmp_path: Path) -> None:
    home = tmp_path / "cache" / "rollcall" / "models" / shared.digest
    home.mkdir(parents=True)
    (home / "config.json").write_text("{")
    left = home.with_name(f".writing-{home.name}")
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    assert compute_digest(Path(find_local(shared, timeout_s=60))) == shared.digest
    assert not left.exists()


def test_two_processes_of_a_host_copy_it_once(shared: SharedFolder) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(find_local(shared, timeout_s=60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert compute_digest(Path(found[0])) == shared.digest


def test_a_folder_that_changes_while_it_travels_is_refused(shared: SharedFolder, model: Path, tmp_path: Path) -> None:
    (model / "config.json").write_text('{"other": 1}')
    with pytest.raises(ModelError, match="leave the folder of the model as it is"):
        find_local(shared, timeout_s=60)
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_cache_that_cannot_be_written_is_named(shared: SharedFolder, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match="point XDG_CACHE_HOME"):
        find_local(shared, timeout_s=60)


def test_the_wait_for_another_copy_has_a_deadline(tmp_path: Path) -> None:
    with (
        _lock(tmp_path / "lock", timeout_s=1),
        pytest.raises(DeadlineError, match="fetch the model"),
        _lock(tmp_path / "lock", timeout_s=0.3),
    ):
        os.abort()
