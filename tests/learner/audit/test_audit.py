"""The auditor on books made by hand: it finds nothing in clean ones, and every change of them."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import RunFolderError
from learner.audit import process_rules
from learner.audit.__main__ import main
from learner.audit.compare import find_parting
from learner.audit.rules import find_violations
from learner.audit.run_record import RunRecord, read_record
from learner.tracking.books import read_books
from tests.helpers.made_books import MadeRun, seal


def audit(run: MadeRun, folder: Path) -> list[str]:
    return find_violations(read_record(run.write(folder)))


def test_clean_books_have_no_violation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = MadeRun().write(tmp_path / "run")
    assert main([str(folder)]) == 0
    table = capsys.readouterr().out
    assert "28 dispatched, 22 trained, 6 dropped, 0 pending" in table
    assert "6 of 6, 2 starts" in table
    assert "1 steps at most, 1 allowed" in table
    assert "not looked for: the run was on another host" in table


Change = Callable[[MadeRun], object]


def column(step: int, name: str, at: int, value: Any) -> Change:
    """Change a value of a group."""

    def change(run: MadeRun) -> None:
        run.books[step]["groups"][name][at] = value

    return change


def field(row: int, name: str, value: Any) -> Change:
    def change(run: MadeRun) -> None:
        run.books[row][name] = value

    return change


def swap(run: MadeRun) -> None:
    run.books[1], run.books[2] = run.books[2], run.books[1]


def end_early(run: MadeRun) -> None:
    run.summary = {"outcome": "finished", "steps": 5, "stopped_early": None}


def move_group(run: MadeRun) -> None:
    """A group of step 1 is counted in step 2."""
    for values in run.books[1]["groups"].values():
        values.pop()


CHANGES: dict[str, tuple[Change, str]] = {
    "an old token": (column(5, "version", 1, 2), "sampled with weights 2, 2 steps old, where rollout.max_lag is 1"),
    "a token of the future": (column(5, "version", 1, 5), r"sampled with weights 5, -1 steps old"),
    "a group twice": (column(4, "prompt", 0, "train/0"), "group train/0 of epoch 0 is in step 0 too"),
    "a group twice in a step": (column(1, "prompt", 0, "train/5"), "group train/5 of epoch 0 is in step 1 too"),
    "a group lost": (move_group, "step 1: 6 groups trained and 1 dropped by then, where the run counts 7 and 1"),
    "no reason": (column(1, "fate", 2, ""), "neither trained nor dropped with a reason, but ''"),
    "an unknown reason": (column(1, "fate", 2, "lost"), "neither trained nor dropped with a reason"),
    "trained in a step left out": (column(3, "fate", 0, "trained"), "is trained in a step that was left out"),
    "left out in a step taken": (column(2, "fate", 1, "skipped"), "is skipped in a step that was taken"),
    "trained without completions": (column(2, "size", 1, 0), "is trained, and has no completions"),
    "failed with completions": (column(1, "size", 2, 8), "has failed, and has completions"),
    "sampled by nobody": (column(2, "engine", 1, None), "is sampled by None"),
    "given by an engine": (column(2, "origin", 1, "given"), "is given, and has an engine"),
    "dispatched": (field(2, "dispatched", 17), "17 groups dispatched, 10 trained, 2 dropped, 4 pending"),
    "trained": (field(2, "trained", 9), "10 groups trained and 2 dropped by then, where the run counts 9 and 2"),
    "dropped": (field(2, "dropped", 3), "where the run counts 10 and 3"),
    "pending at the end": (field(6, "pending", [4]), "the run has finished with 4 groups pending"),
    "pending forgotten": (lambda run: run.books[2].update(pending=[5], dispatched=17), "asked ahead, .4. are left"),
    "a step missing": (lambda run: run.books.pop(2), "step 3: its row comes where that of step 2 is due"),
    "a step twice": (lambda run: run.books.insert(2, run.books[1]), "step 1: its row comes where that of step 2"),
    "two steps swapped": (swap, "step 2: its row comes where that of step 1 is due"),
    "the last steps lost": (lambda run: run.books.pop(), "the books hold 5 steps, metrics.jsonl 6"),
    "a record lost": (lambda run: run.metrics.pop(3), "metrics.jsonl holds steps 0, 1, 2, 4, 5, not one row for each"),
    "another count": (lambda run: run.metrics[2].update(groups_trained=11), r"metrics.jsonl counts \[16, 11, 2\]"),
    "flipped weights": (
        lambda run: run.books[1]["loads"][0].__setitem__(2, "x"),
        "step 1: engine-0 holds x as weights 2, which are w2",
    ),
    "other weights after a resume": (
        lambda run: run.books[4]["published"][0].__setitem__(1, "x"),
        "weights 3 are x, and were w3 before",
    ),
    "a load of nothing": (lambda run: run.books[0]["loads"].append(["engine-0", 9, "x"]), "which were not published"),
    "sampled without a load": (column(2, "engine", 1, "engine-7"), "engine-7 sampled with weights 1, which it had not"),
    "weights not published": (field(1, "published", []), "weights 2 were not published|loaded weights 2, which were"),
    "weights out of turn": (lambda run: run.books[1]["published"].append([7, "x"]), "weights 7 were published"),
    "not rewound": (lambda run: run.events[3].update(first_step=2), "start 0 took it, and start 1 goes on from step 2"),
    "rewound too far": (lambda run: run.events[3].update(first_step=4), "start 1 took it, which began with step 4"),
    "a start too few": (lambda run: run.events.pop(3), "start 1 took a step, and events.jsonl names 1 starts"),
    "starts mixed": (field(5, "attempt", 0), "start 0 took it, after start 1"),
    "a standstill": (field(3, "monotonic", 250.0), "start 0: 119 s between checkpoint and step 3, 60 s are allowed"),
    "no end": (lambda run: run.events.pop(), "start 1 has no end"),
    "another end": (lambda run: run.events[-1].update(outcome="lost"), "says finished, the last event lost"),
    "no summary": (lambda run: setattr(run, "summary", None), "there is no summary.json"),
    "fewer steps": (
        lambda run: setattr(run, "summary", {**(run.summary or {}), "steps": 5}),
        "summary.json says 5 steps, the books 6",
    ),
    "not all steps": (lambda run: run.config.update(steps=7), "the run has finished after 6 of 7 steps"),
    "time runs back": (field(2, "monotonic", 101.0), "step 2: it ended before what came before it"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_broken_promise_is_named(tmp_path: Path, what: str) -> None:
    change, said = CHANGES[what]
    run = MadeRun()
    change(run)
    violations = audit(run, tmp_path / "run")
    assert re.search(said, "\n".join(violations)), violations


def test_a_violation_is_a_line_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = MadeRun()
    column(5, "version", 1, 2)(run)
    assert main([str(run.write(tmp_path / "run"))]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("violation: ")]
    assert len(lines) == 1


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every number, text and truth value."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, (*path, key))
    else:
        yield path


def change_leaf(value: Any, path: tuple[Any, ...]) -> None:
    *way, last = path
    for key in way:
        value = value[key]
    old = value[last]
    value[last] = not old if isinstance(old, bool) else old + 1000 if isinstance(old, int | float) else f"{old}x"


# What follows from nothing else in the books: another run says whether it is right. And how large a group is.
FREE_LEAVES = {"tokens", "logprobs", "rewards", "size", "epoch", "seal", "prompt"}


def is_free(path: tuple[Any, ...]) -> bool:
    """Say so too of an engine that has loaded what nobody asked it for, and of one that an earlier start had."""
    return bool(FREE_LEAVES & {*path}) or ("loads" in path and path[-1] == 0) or (path[0] == 4 and "engine" in path)


def audit_rows(clean: RunRecord, rows: list[dict[str, Any]]) -> list[str] | None:
    """Return the violations of these books in place of clean ones; None where they cannot be read."""
    try:
        books = [read_books(row) for row in rows]
    except (ValueError, TypeError, KeyError):
        return None
    return find_violations(replace(clean, books=books))


@pytest.fixture
def clean(tmp_path: Path) -> RunRecord:
    return read_record(MadeRun().write(tmp_path / "clean"))


def test_every_change_of_a_value_is_found(clean: RunRecord) -> None:
    """Even with a new checksum over the row, but for what only another run can contradict."""
    paths = [path for path in leaves(MadeRun().books) if not is_free(path)]
    paths.remove((1, "groups", "fate", 2))  # another reason is a reason
    assert len(paths) > 200
    assert audit_rows(clean, MadeRun().books) == []
    for path in paths:
        run = MadeRun()
        change_leaf(run.books, path)
        assert audit_rows(clean, [seal(row) for row in run.books]) != [], path


def test_every_change_without_a_new_checksum_makes_the_books_unreadable(clean: RunRecord) -> None:
    for path in leaves(MadeRun().books):
        run = MadeRun()
        change_leaf(run.books, path)
        assert audit_rows(clean, run.books) is None


def test_values_of_another_kind_are_refused_or_a_violation(clean: RunRecord) -> None:
    for path in leaves(MadeRun().books[4]):
        if is_free((4, *path)) or path[-1] == "monotonic":
            continue
        values: tuple[Any, ...] = (None, -1, 1.5, "text", [], {}, [[1]], True)
        for value in values:
            run = MadeRun()
            *way, last = path
            at: Any = run.books[4]
            for key in way:
                at = at[key]
            if at[last] not in (value, None) and value is not None:
                at[last] = value
                assert audit_rows(clean, [seal(row) for row in run.books]) != [], (path, value)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = MadeRun()
    run.books[3]["trained"] = 99
    with pytest.raises(RunFolderError, match=r"line 4 of .*books.jsonl cannot be read") as caught:
        read_record(run.write(tmp_path / "run", reseal=False))
    assert "its checksum is not its content's" in str(caught.value.got)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no books": lambda run: (run / "books.jsonl").unlink(),
    "books of another format": lambda run: (run / "books.jsonl").write_text('{"format": 2}\n'),
    "books that are a list": lambda run: (run / "books.jsonl").write_text("[]\n"),
    "books that are no text": lambda run: (run / "books.jsonl").write_bytes(b"\xff\xfe\n"),
    "books nested deeply": lambda run: (run / "books.jsonl").write_text("[" * 100_000 + "\n"),
    "a folder in their place": lambda run: put_folder(run / "books.jsonl"),
    "a summary of nothing": lambda run: (run / "summary.json").write_text("[]"),
    "a configuration of another version": lambda run: (run / "config.yaml").write_text("stepps: 3"),
    "no configuration": lambda run: (run / "config.yaml").unlink(),
    "events without a time": lambda run: (run / "events.jsonl").write_text('{"kind": "start"}\n'),
    "records without a step": lambda run: (run / "metrics.jsonl").write_text("{}\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = MadeRun().write(tmp_path / "run")
    DAMAGES[damage](folder)
    assert main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "remedy: " in said and "Traceback" not in said


@pytest.mark.parametrize("name", ["config.yaml", "books.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = MadeRun().write(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(RunFolderError) as caught:
        read_record(folder)
    assert caught.value.got == f"it has no {name}"


def test_a_line_cut_short_at_the_end_is_passed_over(tmp_path: Path) -> None:
    folder = MadeRun().write(tmp_path / "run")
    with (folder / "books.jsonl").open("a") as file:
        file.write('{"format": 1, "st')
    assert find_violations(read_record(folder)) == []


def test_a_run_killed_between_its_books_and_its_record_is_clean(tmp_path: Path) -> None:
    run = MadeRun()
    run.metrics.pop()
    run.summary = {"outcome": "lost", "steps": 5, "stopped_early": None}
    run.events[-1]["outcome"] = "lost"
    assert audit(run, tmp_path / "run") == []


def test_a_live_run_needs_no_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = MadeRun()
    run.events.pop()
    run.summary = None
    folder = run.write(tmp_path / "run")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main([str(folder)]) == 0
    assert "running" in capsys.readouterr().out
    assert find_violations(read_record(folder)) == ["start 1 has no end"]


def test_checksums_of_other_buckets_are_not_compared(tmp_path: Path) -> None:
    """`weights.bucket_mb` may change on a resume."""
    run = MadeRun()
    run.events[3]["bucket_mb"] = 64
    for row in run.books[4:]:
        for one in (*row["published"], *row["loads"]):
            one[-1] = f"{one[-1]} in smaller buckets"
    assert audit(run, tmp_path / "run") == []


def test_survivors_are_named_and_a_process_that_has_a_number_again_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_rules, "LINGER_S", 0.2)
    driver = subprocess.Popen(["sleep", "1000"])
    engine = subprocess.Popen(["ray::Engine", "1000"], executable="/bin/sleep")
    run = MadeRun()
    first = next(at for at, row in enumerate(run.events) if at and row["kind"] == "start")  # of the second start
    run.events[first] |= {"pid": driver.pid, "host": socket.gethostname(), "wall": 1.8e12}
    up = {**run.events[1], "pid": engine.pid, "wall": 1.8e12, "monotonic": 10.0}
    run.events.insert(first + 1, up)
    try:
        assert audit(run, tmp_path / "run") == [
            f"driver (pid {driver.pid}) is still alive",
            f"engine engine-0 (pid {engine.pid}) is still alive",
        ]
        run.events[first + 1]["pid"] = os.getpid()  # no process of Ray's: one of another host has the same number
        run.events[first]["wall"] = 1.0
        assert audit(run, tmp_path / "run") == []
        run.events[first + 1] = {"kind": "rank_up", "rank": 0, "pid": engine.pid, "wall": 1.8e12, "monotonic": 10.0}
        assert audit(run, tmp_path / "run") == [f"rank 0 (pid {engine.pid}) is still alive"]
    finally:
        for process in (driver, engine):
            process.kill()
            process.wait()


PARTINGS: dict[str, tuple[Change, str]] = {
    "tokens": (
        column(4, "tokens", 2, "other"),
        "step 3, group train/18 of epoch 0: other tokens, t42 in one, other in the other",
    ),
    "rewards": (column(1, "rewards", 0, "x"), "step 1, group train/4 of epoch 0: other rewards, r10 in one"),
    "log-probs": (column(6, "logprobs", 3, "x"), "step 5, group train/27 of epoch 0: other log-probs"),
    "prompts": (column(2, "prompt", 1, "train/99"), "step 2, group train/9 of epoch 0: other prompts, train/9 in one"),
    "fates": (column(2, "fate", 1, "filtered"), "step 2, group train/9 of epoch 0: other fate"),
    "weights": (lambda run: run.books[2]["published"][0].__setitem__(1, "x"), "step 2: other weights 3, w3 in one, x"),
    "length": (lambda run: run.books.pop(), "the same for 5 steps"),
    "groups": (move_group, "step 1: 4 groups in one, 3 in the other"),
    "a step left out": (
        lambda run: run.books.pop(3),
        "step 3: it is left out in one, step 3 is taken in the other",
    ),
}


@pytest.mark.parametrize("what", PARTINGS)
def test_the_first_difference_of_two_runs_is_named(tmp_path: Path, what: str) -> None:
    change, said = PARTINGS[what]
    run = MadeRun()
    change(run)
    one, other = read_record(MadeRun().write(tmp_path / "a")), read_record(run.write(tmp_path / "b"))
    found = find_parting(one, other)
    assert found is not None and said in found
    assert find_parting(other, one) is not None


def test_two_runs_that_differ_in_who_sampled_when_do_not_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = MadeRun()
    for row in run.books:
        row["attempt"], row["monotonic"] = 0, row["monotonic"] + 5
        row["groups"]["engine"] = [one and "engine-0" for one in row["groups"]["engine"]]
    one, other = MadeRun().write(tmp_path / "a"), run.write(tmp_path / "b")
    assert main([str(one), str(other)]) == 0
    assert capsys.readouterr().out == "the runs do not part: 6 steps are the same\n"
    changed = copy.deepcopy(run)
    column(4, "tokens", 2, "other")(changed)
    assert main([str(one), str(changed.write(tmp_path / "c"))]) == 1
    assert capsys.readouterr().out.startswith("the runs part: step 3, group train/18")
    assert json.loads((one / "books.jsonl").read_text().splitlines()[0])["format"] == 1
