"""The journal of a run gives back what it was given, and refuses what no run wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common.config.schema import Config
from common.data.sources import ExampleSource, load
from common.data.stream import StreamState, digest_rows
from common.errors import DataError, RollcallError, RunFolderError
from common.types import Completion, FailedGroup, Group, VersionSpan
from learner.driver.control.journal import JOURNAL, Journal
from learner.driver.preflight.replay import open_replay

DRAWN = [("train/7", 0), ("train/8", 0)]
RAW = {
    "steps": 30,
    "data": {"path": "embedded:digits", "image_size": 8},
    "rollout": {"update": "in_flight", "max_lag": 2, "gpus_per_engine": 0},
    "learner": {"gpus_per_rank": 0},
    "cluster": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def digits() -> ExampleSource:
    return load(Config.model_validate(RAW).data, split="train")


def make_state(source: ExampleSource) -> StreamState:
    return StreamState(rows=len(source), epoch=0, position=0, deferred=(), digests=digest_rows(source))


def make_group(prompt: str, version: int) -> Group:
    spans = (VersionSpan(version, 2), VersionSpan(version + 1, 1))
    said = Completion(
        token_ids=(5, 6, 7), logprobs=(-0.1, -1 / 3, -1e-30), text="zwölf", finish_reason="stop", spans=spans
    )
    return Group(
        prompt_id=prompt, completions=(said,), origin="sampled", seed=3, engine_id="engine-1", weights_version=version
    )


@pytest.fixture
def folder(tmp_path: Path, digits: ExampleSource) -> Path:
    """A run folder with three steps in its journal; the last was asked twice, with other prompts."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(Config.model_validate(RAW).model_dump(mode="json")))
    journal = Journal(tmp_path)
    journal.begin(make_state(digits))
    journal.append(0, DRAWN, [make_group("train/8", 0), FailedGroup(prompt_id="train/7", reason="refused")])
    journal.append(1, DRAWN, [make_group("train/7", 1), make_group("train/8", 0)])
    journal.append(2, [("train/1", 0)], [make_group("train/1", 1)])
    journal.append(2, [("train/2", 1)], [make_group("train/2", 2)])
    return tmp_path


def test_answers_come_back_as_they_were(folder: Path) -> None:
    journal = Journal(folder)
    assert journal.steps == 3
    found = journal.find(0, DRAWN)
    assert found == {
        "train/8": make_group("train/8", 0),
        "train/7": FailedGroup(prompt_id="train/7", reason="refused"),
    }
    assert list(found) == ["train/8", "train/7"], "in the order in which they came"
    assert journal.find(2, [("train/2", 1)]) == {"train/2": make_group("train/2", 2)}
    assert journal.find(2, [("train/1", 1)]) is None, "of another epoch"
    assert journal.find(3, DRAWN) is None


def test_what_is_written_is_found_once_it_is_opened_again(folder: Path, digits: ExampleSource) -> None:
    with (folder / JOURNAL).open("ab") as file:
        file.write(b'{"number": 3, "drawn": [["train/7", ')  # a kill cut it short
    journal = Journal(folder)
    assert journal.steps == 3
    journal.begin(make_state(digits))
    journal.append(3, DRAWN, [make_group("train/7", 2)])
    assert journal.find(3, DRAWN) is None
    journal.reopen()
    assert journal.find(3, DRAWN) == {"train/7": make_group("train/7", 2)}
    assert len((folder / JOURNAL).read_bytes().splitlines()) == 6


def test_a_journal_of_the_same_run_can_be_followed(folder: Path, digits: ExampleSource) -> None:
    said: list[str] = []
    other = {"rollout": RAW["rollout"] | {"replay": str(folder), "engines": 4}}  # type: ignore[operator]
    journal = open_replay(Config.model_validate(RAW | other), digits, say=said.append)
    assert journal is not None and journal.steps == 3
    assert said == [f"replay: the answers of 3 of 30 steps come from {folder / JOURNAL}"]


def change_lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / JOURNAL
        path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))

    return spoil


def change_digests(lines: list[bytes]) -> list[bytes]:
    header = json.loads(lines[0])
    header["stream"]["digests"] = dict.fromkeys(header["stream"]["digests"], "0" * 16)
    return [json.dumps(header).encode(), *lines[1:]]


@pytest.mark.parametrize(
    ("spoil", "changes", "kind", "told"),
    [
        (change_lines(lambda lines: lines[:1]), {}, RunFolderError, "holds no step"),
        (lambda folder: (folder / JOURNAL).unlink(), {}, RunFolderError, "holds no step"),
        (lambda folder: (folder / "config.yaml").unlink(), {}, RunFolderError, "no config.yaml"),
        (lambda folder: (folder / "config.yaml").write_text("steps: [\0"), {}, RunFolderError, "cannot be followed"),
        (change_lines(lambda lines: [b"{", *lines[1:]]), {}, DataError, "is no journal of a run"),
        (change_lines(lambda lines: lines[1:]), {}, DataError, "is no journal of a run"),
        (change_lines(lambda lines: [b'{"format": 9}', *lines[1:]]), {}, DataError, "format 9"),
        (change_lines(change_digests), {}, DataError, "with other"),
        (lambda folder: None, {"seed": 6}, RunFolderError, "seed: 1 there, 6 here"),
        (lambda folder: None, {"learner": {"gpus_per_rank": 0, "lr": 0.5}}, RunFolderError, "learner.lr: "),
    ],
)
def test_another_run_is_refused(
    folder: Path,
    digits: ExampleSource,
    spoil: Callable[[Path], None],
    changes: dict[str, object],
    kind: type[RollcallError],
    told: str,
) -> None:
    spoil(folder)
    raw = RAW | changes
    raw["rollout"] = RAW["rollout"] | {"replay": str(folder)}  # type: ignore[operator]
    with pytest.raises(kind) as caught:
        open_replay(Config.model_validate(raw), digits, say=print)
    assert told in str(caught.value)


@pytest.mark.parametrize("answers", ["", "%%%", "AAAA", "eJwDAAAAAAE=", 7])
def test_a_damaged_step_is_an_error(folder: Path, answers: object) -> None:
    row = {"number": 0, "drawn": DRAWN, "answers": answers}
    change_lines(lambda lines: [lines[0], json.dumps(row).encode(), *lines[2:]])(folder)
    journal = Journal(folder)
    with pytest.raises(DataError, match="step 0 cannot be read"):
        journal.find(0, DRAWN)
    assert journal.find(1, DRAWN) is not None
