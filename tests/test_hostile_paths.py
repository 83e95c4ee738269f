"""Every path that a command takes, as what it should not be: one error that names it, before anything starts."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.data import lint
from common.data.build import __main__ as build
from learner import evaluate
from learner import main as learner
from learner.report import __main__ as report
from tests.helpers.makers import image_folder

pytestmark = pytest.mark.slow  # three hundred command lines

Main = Callable[[list[str]], int]
DIGITS = ["--config", "deploy/recipes/digits.yaml"]
WAIT_S = 60  # a pipe without a writer is waited for without end

# By name: what is given for a path. Each is text with {tmp} for a folder of the test.
NOWHERE = {
    "missing": "{tmp}/none",
    "missing, relative": "./none/../none.x",
    "long name": "{tmp}/" + "x" * 256,
    "long name, relative": "x" * 300,
    "long path": "{tmp}" + "/d" * 2100,
    "below a file": "{tmp}/file/x",
    "a link to itself": "{tmp}/loop",
    "below a link to itself": "{tmp}/loop/x",
    "a link to nothing": "{tmp}/dangling",
    "nobody's home": "~nobody-of-that-name/x",
    "a NUL": "{tmp}/a\0b",
    "empty": "",
}
NAMED = {kind: place for kind, place in NOWHERE.items() if place}  # "" is a split of the training data
UNLINKED = {kind: place for kind, place in NOWHERE.items() if not kind.startswith("a link")}  # these may be replaced
SPECIAL = {"a pipe": "{tmp}/pipe", "a socket": "{tmp}/socket"}
STRANGE = SPECIAL | {"a device": "/dev/null"}  # only to be read: a test that fails must not write over the real one
FILE = {"a file": "{tmp}/file"}
FOLDER = {"a folder": "{tmp}/folder"}
NOT_UTF8 = {"not UTF-8": "{tmp}/caf\udce9"}
MISSING = ("missing", "missing, relative")  # right for what is written

# Entry point, words with {} for the path, what the error calls it, what is given for it.
INPUTS: list[tuple[Main, list[str], str, dict[str, str]]] = [
    (learner.main, ["--dry-run", "--config", "{}"], "", NOWHERE | FOLDER | NOT_UTF8),
    (learner.main, ["--dry-run", *DIGITS, "model.path={}"], "model.path", NOWHERE | STRANGE | FILE | FOLDER | NOT_UTF8),
    (learner.main, ["--dry-run", *DIGITS, "data.path={}"], "", NOWHERE | STRANGE | FILE | FOLDER | NOT_UTF8),
    (learner.main, ["--dry-run", *DIGITS, "data.eval_path={}"], "data", NOWHERE | STRANGE | FILE | FOLDER),
    (learner.main, ["--dry-run", *DIGITS, "evaluation.sets={{x: '{}'}}"], "set", NAMED | STRANGE | FILE | FOLDER),
    (learner.main, ["--dry-run", *DIGITS, "resume={}"], "resume", NOWHERE | STRANGE | FILE | FOLDER | NOT_UTF8),
    (evaluate.main, ["--model", "{}", *DIGITS, "--data", "@test"], "model", NOWHERE | STRANGE | FILE | FOLDER),
    (evaluate.main, ["--model", "embedded:tiny", "--data", "{}"], "", NOWHERE | STRANGE | FILE | FOLDER),
    (report.main, ["{}"], "", NOWHERE | STRANGE | FILE | FOLDER | NOT_UTF8),
    (build.main, ["{}", "--shots", "all", "--out", "{tmp}/out"], "", NOWHERE | STRANGE | FILE | FOLDER | NOT_UTF8),
    (build.main, ["{}", "--layout", "dtd", "--shots", "1", "--out", "{tmp}/out"], "", NOWHERE | STRANGE | FILE),
    (
        build.main,
        ["{tmp}/photos", *["--shots", "1", "--out", "{tmp}/out", "--candidates", "hard", "--confusion"], "{}"],
        "",
        NOWHERE | STRANGE | FILE | FOLDER,
    ),
    (lint.main, ["{}"], "", NOWHERE | STRANGE | FILE | FOLDER | NOT_UTF8),
    (lint.main, ["{tmp}/photos", "--model", "{}"], "model", NOWHERE | STRANGE | FILE | FOLDER),
]
OUTPUTS: list[tuple[Main, list[str], str, dict[str, str]]] = [
    (learner.main, ["--dry-run", *DIGITS, "run_dir={}"], "run", UNLINKED | SPECIAL | FILE | NOT_UTF8),
    (evaluate.main, ["--model", "embedded:tiny", "--data", "@test", "--out", "{}"], "", UNLINKED | SPECIAL | FILE),
    (
        evaluate.main,
        ["--model", "embedded:tiny", "--data", "@test", "--cls-rl-format", "{}"],
        "--cls-rl-format",
        UNLINKED | SPECIAL | FOLDER,
    ),
    (report.main, ["{tmp}/run", "--out", "{}"], "", UNLINKED | SPECIAL | FILE),
    (build.main, ["{tmp}/photos", "--shots", "all", "--out", "{}"], "", NOWHERE | SPECIAL | FILE),
]
CASES = [
    pytest.param(main, words, names, place, id=f"{main.__module__} {' '.join(words[-2:])} {kind}")
    for table, left_out in ((INPUTS, ()), (OUTPUTS, MISSING))
    for main, words, names, places in table
    for kind, place in places.items()
    if kind not in left_out
]


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Fail a command that waits without end."""

    def fail(*_: object) -> None:
        pytest.fail(f"still waiting after {WAIT_S} s")  # no Exception, which the command would take for the path's

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(WAIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "file").write_text("neither a picture nor a set")
    (tmp_path / "folder/inside").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    image_folder(tmp_path / "photos", {"cat": 2, "dog": 2})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("name: x\n")
    short = Path("/tmp") / f"rc-{os.getpid()}.socket"  # their paths must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short))
        short.rename(tmp_path / "socket")
        yield tmp_path


@pytest.mark.parametrize(("main", "words", "names", "place"), CASES)
def test_a_hostile_path_is_one_error_that_names_it(
    tmp: Path, capsys: pytest.CaptureFixture[str], main: Main, words: list[str], names: str, place: str
) -> None:
    place = place.replace("{tmp}", str(tmp))
    before = sorted(path for path in tmp.rglob("*") if path.name != "loop")
    given = [
        word.replace("{{", "{").replace("}}", "}").replace("{tmp}", str(tmp)).replace("{}", place) for word in words
    ]
    try:
        code = main(given)
    except SystemExit as leaving:  # argparse
        code = leaving.code if isinstance(leaving.code, int) else 1
    printed = capsys.readouterr()
    assert code == 2, printed
    assert "Traceback" not in printed.err and len(printed.err) < 12_000
    assert "error: " in printed.err and printed.err.count("remedy: ") == ("usage: " not in printed.err)
    shown = place.encode("unicode_escape").decode().replace("\\\\", "\\")
    last = shown.rpartition("/")[2] or shown
    assert not place or last in printed.err, printed.err
    assert names in printed.err
    assert sorted(path for path in tmp.rglob("*") if path.name != "loop") == before, "nothing is left behind"
