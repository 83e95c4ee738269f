"""Folders for what is made anew, whoever the user is and wherever they point."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from common.command import run_command
from common.errors import PlacementError
from common.storage.temporary import LONGEST_SOCKET, choose_ray_folder, settle_user
from learner.main import main


def test_the_longest_path_of_a_socket_is_the_systems() -> None:
    """The system itself is asked."""
    for length, fits in ((LONGEST_SOCKET, True), (LONGEST_SOCKET + 1, False)):
        name = f"/tmp/{os.getpid()}-".ljust(length, "x")
        with socket.socket(socket.AF_UNIX) as one:
            try:
                one.bind(name)
                assert fits
            except OSError:
                assert not fits
        Path(name).unlink(missing_ok=True)


@pytest.mark.parametrize(("letters", "fits"), [(1, True), (60, False), (108, False), (250, False)])
def test_a_session_whose_sockets_have_too_long_a_path_is_refused(
    monkeypatch: pytest.MonkeyPatch, letters: int, fits: bool
) -> None:
    parent = Path(f"/tmp/{'r' * letters}")
    monkeypatch.setenv("RAY_TMPDIR", str(parent))
    try:
        if fits:
            assert choose_ray_folder().is_relative_to(parent)
        else:
            with pytest.raises(PlacementError, match=r"too long a path|rrrr"):
                choose_ray_folder()
    finally:
        for folder in (parent / f"rollcall-{os.getuid()}", parent):
            if folder.exists():
                folder.rmdir()


@pytest.mark.parametrize("place", ["/dev/null", "/proc/nowhere", "/proc"])
def test_a_dry_run_looks_at_rays_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", place)
    assert main(["--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "no private folder for Ray's session" in error and place in error and "RAY_TMPDIR" in error


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without an entry in passwd; returns the folder that is TMPDIR."""

    def fail(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "USER"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize("home", [None, ""])
def test_a_user_whom_nobody_knows_gets_a_private_home_and_a_name(
    nobody: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    with run_command() as command:
        assert Path.home().is_relative_to(nobody)
        assert stat.S_IMODE(Path.home().stat().st_mode) == 0o700
        assert os.environ["USER"] == f"uid-{os.getuid()}"
    assert command.exit_code == 0


def test_a_home_that_is_set_stays(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/some/home")
    settle_user()
    assert os.environ["HOME"] == "/some/home"


def test_a_private_home_of_somebody_else_is_not_entered(nobody: Path) -> None:
    taken = nobody / f"rollcall-{os.getuid()}"
    taken.mkdir(mode=0o755)
    settle_user()
    assert Path(os.environ["HOME"]) != taken
    assert stat.S_IMODE(Path(os.environ["HOME"]).stat().st_mode) == 0o700
