"""The journal of a run, `journal.jsonl`: all that engines answered, from which it can be repeated to the same bits.

Under `rollout.update = in_flight` it depends on time which weights sampled a token. So each step's answers are kept.
They are taken from here when the step comes again: as a killed run goes on, or as `rollout.replay` repeats it. The
first line says which rows were drawn from. Every other is a step, with its answers as JSON in zlib in base64.
"""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.data.stream import StreamState
from common.errors import DataError, raise_as
from learner.driver.control.answers import Outcome, read_outcome, write_outcome
from learner.storage.files import append_jsonl, cut_unfinished_line

JOURNAL = "journal.jsonl"
FORMAT = 1
LEVEL = 1  # of zlib: a tenth of the time, a fifth more bytes
_NUMBER = re.compile(rb'\{"number": ?(\d{1,12}),')

Drawn = Sequence[tuple[str, int]]  # prompt ids, each with the epoch it was drawn in


class Journal:
    """The journal in one run folder. It may be that of a run which goes on, or of another one."""

    def __init__(self, folder: Path) -> None:
        """Find the steps of a journal; none in a folder without one. Raises OSError."""
        self.path = folder / JOURNAL
        self._places: dict[int, list[int]] = {}  # by number: where the lines of a step begin
        self.reopen()

    def reopen(self) -> None:
        """Find the steps again, those that were written since among them. Raises OSError."""
        self._places = {}
        for place, line in _read_lines(self.path):
            if found := _NUMBER.match(line):
                self._places.setdefault(int(found[1]), []).append(place)

    @property
    def steps(self) -> int:
        """The steps it holds, counted from 0 on without a gap."""
        return next(number for number in range(len(self._places) + 1) if number not in self._places)

    def read_stream(self) -> StreamState:
        """Return where the rows of the run stood when its journal began.

        Raises DataError for a file that is no journal, or of another version.
        """
        with raise_as(DataError, f"{self.path} is no journal of a run", remedy=REMEDY):
            _, line = next(_read_lines(self.path))
            row = parse_json(line.decode())
            if row["format"] != FORMAT:
                raise ValueError(f"format {row['format']!r}, where this version reads {FORMAT}")
            return StreamState(**row["stream"])

    def find(self, number: int, drawn: Drawn) -> dict[str, Outcome] | None:
        """Return what the prompts of a step were answered, by prompt id; None where the journal does not know.

        A number may come twice: a step that was left out is asked again, with other prompts.

        Raises:
            DataError: its line is damaged.
        """
        for place in self._places.get(number, ()):
            with raise_as(DataError, f"step {number} cannot be read from {self.path}", remedy=REMEDY):
                row = self._read_row(place)
                if [(str(prompt), int(epoch)) for prompt, epoch in row["drawn"]] != list(drawn):
                    continue
                answers = [read_outcome(one) for one in parse_json(zlib.decompress(b64decode(row["answers"])).decode())]
                return {one.prompt_id: one for one in answers}
        return None

    def _read_row(self, place: int) -> Mapping[str, Any]:
        with self.path.open("rb") as file:
            file.seek(place)
            row: Mapping[str, Any] = parse_json(file.readline().decode())
            return row

    def begin(self, stream: StreamState) -> None:
        """Begin a journal, unless there is one. Cut off the line that a kill left unfinished. Raises OSError."""
        cut_unfinished_line(self.path)
        if not self.path.exists() or not self.path.stat().st_size:
            append_jsonl(self.path, {"format": FORMAT, "stream": asdict(stream)})

    def append(self, number: int, drawn: Drawn, answers: Sequence[Outcome]) -> None:
        """Write down what the prompts of a step were answered. Raises OSError."""
        text = json.dumps([write_outcome(one) for one in answers], separators=(",", ":")).encode()
        packed = b64encode(zlib.compress(text, LEVEL)).decode()
        append_jsonl(self.path, {"number": number, "drawn": [list(one) for one in drawn], "answers": packed})


REMEDY = "name the folder of a run with rollout.update = in_flight, as the run left it"


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the whole lines of a file, each with where it begins; none of a file that is not there. Raises OSError."""
    if not path.exists():
        return
    place = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield place, line
            place += len(line)
