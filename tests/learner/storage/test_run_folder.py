"""Where a run lives, and everything that makes a folder unusable."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from common.config.schema import Config
from common.errors import RunFolderError
from learner.storage.environment import git_sha
from learner.storage.run_folder import RunFolder

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
_HOLD = """
import sys
from datetime import datetime
from pathlib import Path
from common.config.schema import Config
from learner.storage.run_folder import RunFolder
config = Config(run_dir=Path(sys.argv[1]))
RunFolder.open(config, now=datetime.now()).begin(config)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def opened(**keys: object) -> RunFolder:
    """A folder in which a run has begun."""
    config = Config(**keys)  # type: ignore[arg-type]
    folder = RunFolder.open(config, now=NOW)
    folder.begin(config)
    return folder


def test_a_fresh_run_gets_a_dated_folder_and_latest_points_at_it(tmp_path: Path) -> None:
    folder = opened(name="digits", seed=3)
    assert folder.shown == "runs/20260304-050607-digits"
    assert Path("runs/latest").resolve() == folder.path == tmp_path / folder.shown
    assert Config.model_validate(yaml.safe_load((folder.path / "config.yaml").read_text())) == Config(
        name="digits", seed=3
    )
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment["packages"].keys() >= {"ray", "torch", "deepspeed"}
    assert environment["locks"].keys() >= {"requirements-cpu.lock"}
    folder.close()


def test_runs_started_in_the_same_second_get_a_number() -> None:
    shown = [opened(name="a").shown for _ in range(3)]
    assert shown == [f"runs/20260304-050607-a{tail}" for tail in ("", "-2", "-3")]
    assert Path("runs/latest").resolve().name == "20260304-050607-a-3"


def test_resume_auto_goes_on_with_the_latest_or_starts_afresh() -> None:
    first = opened(resume="auto")  # nothing to resume
    first.close()
    assert first.shown == "runs/20260304-050607-run"
    again = opened(resume="auto", name="other")
    again.close()
    assert again.path == first.path
    given = opened(resume="auto", run_dir="here")
    given.close()
    assert given.shown == "here"


def test_resume_takes_a_run_folder_or_a_checkpoint() -> None:
    first = opened()
    first.close()
    step = first.path / "checkpoints/step-000050"
    step.mkdir(parents=True)
    run = opened(resume=str(first.path))
    run.close()
    assert (run.path, run.step) == (first.path, None)
    checkpoint = opened(resume=str(step))
    checkpoint.close()
    assert (checkpoint.path, checkpoint.step) == (first.path, 50)
    with pytest.raises(RunFolderError, match="resume and run_dir name two run folders"):
        opened(resume=str(step), run_dir="elsewhere")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands it in run_dir=~/runs/a."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = opened(run_dir="~/runs/a")
    folder.close()
    assert folder.path == tmp_path / "home/runs/a"
    again = opened(resume="~/runs/a")
    again.close()
    assert again.path == folder.path
    assert not Path("~").exists()


def test_a_run_that_never_began_leaves_nothing() -> None:
    config = Config()
    first = opened()
    first.close()
    RunFolder.open(config, now=NOW).close()
    assert [path.name for path in Path("runs").iterdir() if path.name != "latest"] == [first.path.name]
    assert Path("runs/latest").resolve() == first.path


def test_a_live_run_is_named_and_a_killed_one_frees_its_folder(tmp_path: Path) -> None:
    where = tmp_path / "run"
    checkout = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(where)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        for resume in (None, "auto"):
            with pytest.raises(RunFolderError, match="in use by a live run") as caught:
                opened(run_dir=where, resume=resume)
            assert f"held by pid {process.pid} on " in str(caught.value.got)
        process.kill()
        process.wait(10)
        with pytest.raises(RunFolderError, match="not empty"):
            opened(run_dir=where)
        opened(run_dir=where, resume="auto").close()


def test_somebody_elses_folder_is_left_as_it_was() -> None:
    Path("home").mkdir()
    Path("home/thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"is not empty(.|\n)*thesis.txt") as caught:
        opened(run_dir="home")
    assert "resume=auto" not in caught.value.remedy  # no run is there
    assert [path.name for path in Path("home").iterdir()] == ["thesis.txt"]
    assert not Path("latest").exists()


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s3//bucket/x", "s3://"),
        ("S3//bucket/x", "s3://"),
        ("gs//bucket/x", "gs://"),
        ("s3;//bucket/x", "s3://"),
        ("s3:bucket/x", "s3://"),
        (" runs/x", "blanks around"),
        ("runs/x ", "blanks around"),
        ("runs/x\t", "blanks around"),
        ("$HOME/x", r"\$HOME"),
        ("runs/${USER}-1", r"\$\{USER\}"),
        ("runs/a\nb", "control characters"),
        ("runs/\x1b[31m", "control characters"),
    ],
)
def test_a_place_that_was_not_meant_is_refused(tmp_path: Path, place: str, told: str) -> None:
    for keys in ({"run_dir": place}, {"resume": place}):
        with pytest.raises(RunFolderError, match=told):
            opened(**keys)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "place", ["s3/x", "s3", "my runs/x y", "café/日本", "a:b", "5$", "US$5", "gs-runs//x", "a's (1)"]
)
def test_an_unusual_place_is_taken(tmp_path: Path, place: str) -> None:
    folder = opened(run_dir=place)
    folder.close()
    assert folder.path == tmp_path / place


@pytest.mark.parametrize("name", [" ", " a", "a ", "\u3000"])
def test_a_name_has_no_blanks_around_it(name: str) -> None:
    with pytest.raises(RunFolderError, match="name cannot be part"):
        opened(name=name)


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/rollcall", "/proc/1/rollcall"])
def test_a_folder_that_cannot_be_written_is_named(place: str) -> None:
    Path("file").touch()
    with pytest.raises(RunFolderError, match=f"cannot be written(.|\n)*{place}(.|\n)*run_dir"):
        opened(run_dir=place)


@pytest.mark.parametrize("keys", [{"resume": "nowhere"}, {"resume": "."}, {"name": "../a"}, {"name": ""}])
def test_other_unusable_requests(keys: dict[str, str]) -> None:
    with pytest.raises(RunFolderError):
        opened(**keys)
    assert not Path("runs").exists()


def test_a_folder_called_latest_is_not_replaced() -> None:
    Path("latest").mkdir()
    folder = opened(run_dir="mine")
    assert not Path("latest").is_symlink()
    folder.close()


def test_git_sha_is_of_the_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROLLCALL_COMMIT", raising=False)
    assert git_sha(tmp_path) == "unknown"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").touch()
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    clean = git_sha(tmp_path)
    assert len(clean) == 40
    (tmp_path / "a").write_text("b")
    assert git_sha(tmp_path) == f"{clean}-dirty"
    (tmp_path / "inside").mkdir()
    assert git_sha(tmp_path / "inside") == "unknown"


def test_the_commit_travels_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image by a file, with `--working-dir` by a variable; else the package's hash stands for it."""
    monkeypatch.delenv("ROLLCALL_COMMIT", raising=False)
    package = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef"
    image = tmp_path / "app"
    for root in (package, image):
        root.mkdir(parents=True)
    (image / "COMMIT").write_text("f" * 40 + "\n")
    assert git_sha(package) == "_ray_pkg_0123456789abcdef"
    assert git_sha(image) == "f" * 40
    monkeypatch.setenv("ROLLCALL_COMMIT", "a" * 40)
    assert git_sha(package) == git_sha(image) == "a" * 40


@pytest.mark.parametrize("keys", [{}, {"run_dir": "runs/x"}, {"resume": "auto"}, {"name": "evaluate"}])
def test_a_run_folder_in_a_ray_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> None:
    package = tmp_path / "session_x/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    with pytest.raises(RunFolderError, match=r"Ray's copy(.|\n)*_ray_pkg_0123456789abcdef(.|\n)*/shared/runs"):
        opened(**keys)
    assert list(package.iterdir()) == []
    opened(**keys | {"run_dir": str(tmp_path / "outside")}).close()


def test_the_address_names_host_and_absolute_path(tmp_path: Path) -> None:
    folder = opened(run_dir="here")
    assert folder.address == f"{socket.gethostname()}:{tmp_path}/here"
    folder.close()
