"""The manifest of a checkpoint: who wrote each file, its size and its hash. Once it is there, the checkpoint is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from common.config.foreign_text import parse_json
from common.storage.output import WriteReport, WrittenFile, name_rank

FORMAT = 2  # 1 did not say which rank wrote a file
MANIFEST = "manifest.json"
DRIVER = "driver"  # who wrote what no rank did


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint of one step holds."""

    step: int
    ranks: int
    reports: tuple[WriteReport, ...]  # of the driver and of every rank
    attempt: str = ""  # folder of the files, in a bucket

    @property
    def files(self) -> list[WrittenFile]:
        return [file for report in self.reports for file in report.files]

    def write(self) -> str:
        """Return the text of the file."""
        entries = {
            file.name: {"by": report.by, "bytes": file.bytes, "sha256": file.sha256}
            for report in self.reports
            for file in report.files
        }
        head = {"format": FORMAT, "step": self.step, "ranks": self.ranks}
        return json.dumps(head | ({"attempt": self.attempt} if self.attempt else {}) | {"files": entries}, indent=1)


def read_manifest(text: bytes, step: int) -> Manifest:
    """Read the manifest of a checkpoint of `step`.

    Raises:
        ValueError: saying what is wrong: damaged, of another format or step, or without files of a rank.
    """
    try:
        row = parse_json(text)
        label = f"format {row['format']}, step {row['step']:06}"
    except Exception as error:  # noqa: BLE001  # the file may be anybody's
        raise ValueError(f"{MANIFEST} is damaged: {error!r}") from None
    if label != f"format {FORMAT}, step {step:06}":
        raise ValueError(f"{MANIFEST} is of {label}; this version reads format {FORMAT}")
    try:
        ranks, attempt = int(row["ranks"]), str(row.get("attempt", ""))
        by: dict[str, list[WrittenFile]] = {}
        for name, entry in row["files"].items():
            file = WrittenFile(name=name, bytes=int(entry["bytes"]), sha256=entry["sha256"])
            by.setdefault(str(entry["by"]), []).append(file)
    except Exception as error:  # noqa: BLE001
        raise ValueError(f"{MANIFEST} is damaged: {error!r}") from None
    if fault := _find_fault(by, ranks, attempt):
        raise ValueError(fault)
    reports = tuple(WriteReport(by=writer, files=tuple(files), host="") for writer, files in by.items())
    return Manifest(step=step, ranks=ranks, reports=reports, attempt=attempt)


def _find_fault(by: dict[str, Sequence[WrittenFile]] | dict[str, list[WrittenFile]], ranks: int, attempt: str) -> str:
    """Say which writer is missing or unknown, or which name leads out of the checkpoint; nothing where all is well."""
    if ranks >= len(by) + 9:  # a number of anybody's, of which no list is made
        return f"it holds files of {len(by)} writers, and names {ranks} ranks"
    writers = {DRIVER, *(map(name_rank, range(ranks)) if ranks > 0 else ["any rank"])}
    if odd := sorted(writers ^ by.keys()):
        return f"it holds no file of {odd[0]}" if odd[0] in writers else f"it holds a file of {odd[0]}"
    names = [*(file.name for files in by.values() for file in files), *([attempt] if attempt else [])]
    outside = [name for name in names if name.startswith("/") or ".." in PurePosixPath(name).parts]
    return f"it names {outside[0]}, outside of it" if outside else ""
