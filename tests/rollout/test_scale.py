"""`python -m rollout.scale`, against run folders that are written here: what is refused, and what is waited for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.storage.bucket import BucketFolder
from rollout import scale
from rollout.command_file import CommandFile, FleetState
from tests.helpers.s3 import S3Server

STATE = FleetState(command="", refused="", wanted=2, serving=2, starting=0, waiting=0, draining=0)


class Reads:
    """Counts how often a state was read."""

    count = 0


reads = Reads()


@pytest.fixture(autouse=True)
def count_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CommandFile.read_state

    def read_state(file: CommandFile) -> Mapping[str, Any]:
        state = real(file)
        reads.count += 1
        return state

    monkeypatch.setattr(CommandFile, "read_state", read_state)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The folder of a run with two engines that is under way."""
    (tmp_path / "config.yaml").write_text("rollout: {engines: 2}\n")
    note(tmp_path, "start")
    return tmp_path


def note(folder: Path, kind: str, **fields: object) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"wall": time.time(), "kind": kind, **fields}) + "\n")


def ask(folder: Path, *words: str) -> int:
    return scale.main([str(folder), *words])


def play(folder: Path, *states: FleetState, then: str = "") -> threading.Thread:
    """Play a run that sees a command, and is in these states one after the other; then it ends, or another comes."""
    file = CommandFile(folder)

    def follow() -> None:
        while not (command := file.read()):
            time.sleep(0.01)
        for state in states:
            seen = reads.count
            file.write_state(replace(state, command=command))
            while state is not states[-1] and reads.count < seen + 2:  # one read may have begun before
                time.sleep(0.01)
        if then == "end":
            note(folder, "end", outcome="failed")
        elif then:
            file.write(then)

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def test_it_waits_until_so_many_serve(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coming = replace(STATE, wanted=4, serving=3, waiting=1)
    thread = play(run_folder, replace(coming, serving=2, waiting=2), coming, replace(STATE, wanted=4, serving=4))
    assert ask(run_folder, "4") == 0
    thread.join()
    said = capsys.readouterr().out
    assert "engines: 2 serve, 2 wait for a place" in said
    assert said.endswith("done: engines: 4 serve\n")
    assert (run_folder / "engines").read_text() == "4\n"
    assert sorted(path.name for path in run_folder.iterdir()) == [
        "config.yaml",
        "engines",
        "engines.json",
        "events.jsonl",
    ]


def test_it_waits_until_those_that_leave_have_left(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = replace(STATE, wanted=1, serving=1)
    thread = play(run_folder, replace(left, draining=1), left)
    assert ask(run_folder, "1") == 0
    thread.join()
    assert "1 serve, 1 finish their work" in capsys.readouterr().out


def test_auto_needs_no_number(run_folder: Path) -> None:
    thread = play(run_folder, STATE)
    assert ask(run_folder, "--auto") == 0
    thread.join()
    assert (run_folder / "engines").read_text() == "auto\n"


def test_it_need_not_wait(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(run_folder, "3", "--wait", "0") == 0
    assert capsys.readouterr().out == "asked for 3\n"


@pytest.mark.parametrize(
    ("engines", "wanted", "said"),
    [
        ("2", "0", "0 engines are not between 1 and 1024"),
        ("2", "-1", "neither a number nor auto"),
        ("2", "1025", "not between 1 and 1024"),
        ("2", "many", "neither a number nor auto"),
        ("2", "2.5", "neither a number nor auto"),
        ("{min: 2, max: 4}", "1", "1 engines are not between 2 and 4, as rollout.engines = {min: 2, max: 4} says"),
        ("{min: 2, max: 4}", "5", "5 engines are not between 2 and 4"),
        ("{min: 2}", "3", "configuration cannot be read"),
        ("[2]", "3", "configuration cannot be read"),
    ],
)
def test_what_the_run_cannot_have_is_refused_and_not_written(
    run_folder: Path, capsys: pytest.CaptureFixture[str], engines: str, wanted: str, said: str
) -> None:
    (run_folder / "config.yaml").write_text(f"rollout: {{engines: {engines}}}\n")
    assert ask(run_folder, wanted) == 2
    error = capsys.readouterr().err
    assert said in error and "remedy" in error
    assert not (run_folder / "engines").exists()


def test_no_run_and_one_that_ended(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path / "nowhere", "3") == 2
    assert "no such run" in capsys.readouterr().err
    note(run_folder, "end", outcome="interrupted")
    assert ask(run_folder, "3") == 2
    assert "outcome interrupted" in capsys.readouterr().err
    note(run_folder, "start")  # resumed
    assert ask(run_folder, "3", "--wait", "0") == 0


def test_what_ends_the_wait(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: dict[str, tuple[list[FleetState], str]] = {
        "the run ended before": ([STATE], "end"),
        "another command came in between": ([STATE], "7"),
        "there are too many": ([replace(STATE, refused="there are too many")], ""),
        "3 engines are not there yet": ([replace(STATE, wanted=3, waiting=1)], ""),
    }
    for said, (states, then) in cases.items():
        (run_folder / "engines").unlink(missing_ok=True)
        thread = play(run_folder, *states, then=then)
        assert ask(run_folder, "3", "--wait", "2") == 1
        thread.join()
        assert said in capsys.readouterr().err
        note(run_folder, "start")
    monkeypatch.setattr(scale, "NOTICE_S", 0.5)  # what a run said before its last start does not count
    CommandFile(run_folder).write_state(replace(STATE, command="2"))
    note(run_folder, "start")
    assert ask(run_folder, "2") == 1
    assert "takes no note" in capsys.readouterr().err


def test_files_of_strangers_are_no_crash(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "engines.json").write_bytes(b"\xff{[")
    with (run_folder / "events.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"kind": 3}\nnull\n')
    assert ask(run_folder, "3", "--wait", "0") == 0
    (run_folder / "config.yaml").write_bytes(b"\xff\xfe: [")
    assert ask(run_folder, "3") == 2
    assert "configuration cannot be read" in capsys.readouterr().err


def test_a_bucket_carries_a_command_too(s3: S3Server) -> None:
    place = s3.place("scaled/run")
    assert isinstance(place, BucketFolder)
    place.write("config.yaml", b"rollout: {engines: {min: 1, max: 4}}")
    assert scale.main([str(place), "3", "--wait", "0"]) == 0
    file = CommandFile(place)
    assert file.read() == "3"
    assert file.read_state() == {}
    file.write_state(STATE)
    assert file.read_state()["serving"] == 2
    assert scale.main([str(place), "9"]) == 2


def test_it_starts_at_once_and_brings_nothing_heavy() -> None:
    code = "import sys, rollout.scale; print(*{'torch', 'vllm', 'ray', 'numpy', 'pyarrow'} & sys.modules.keys())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert time.monotonic() - began < 10
