"""The rule on weights: every engine holds the bytes of the version it names, and samples with what it has loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from learner.audit.run_record import RunRecord
from learner.tracking.books import StepBooks


@dataclass(slots=True)
class Weights:
    """The weights of a run, as its rows tell of them one after the other."""

    published: dict[int, str | None] = field(default_factory=dict)  # checksum by version
    loaded: set[tuple[str | None, int | None]] = field(default_factory=set)  # engine and version, in this start
    attempt: int = -1  # this start
    first: int = 0  # version that it began with
    bucket_mb: int = -1

    def begin(self, row: StepBooks, bucket_mb: int) -> None:
        """Begin with the first row of a start. Checksums of buckets of another size say nothing."""
        self.attempt, self.loaded = row.attempt, set()
        self.first = row.published[0].version if row.published else row.step
        if bucket_mb != self.bucket_mb:
            self.bucket_mb, self.published = bucket_mb, dict.fromkeys(self.published)

    def take_published(self, row: StepBooks) -> Iterator[str]:
        """Yield what is wrong with the versions that were published."""
        for version, checksum in row.published:
            before = self.published.get(version)
            if version not in (row.step, row.step + 1):
                yield f"step {row.step}: weights {version} were published"
            if None not in (checksum, before) and before != checksum:
                yield f"step {row.step}: weights {version} are {checksum}, and were {before} before"
            self.published[version] = checksum

    def take_loads(self, row: StepBooks) -> Iterator[str]:
        """Yield which engine holds other bytes than were published as that version."""
        for engine, version, checksum in row.loads:
            self.loaded.add((engine, version))
            if version not in self.published:
                yield f"step {row.step}: {engine} loaded weights {version}, which were not published"
            elif None not in (checksum, self.published[version]) and checksum != self.published[version]:
                due = self.published[version]
                yield f"step {row.step}: {engine} holds {checksum} as weights {version}, which are {due}"

    def take_groups(self, row: StepBooks) -> Iterator[str]:
        """Yield the engines that sampled with weights they had not loaded; an earlier start may have sampled before."""
        if row.recalled:
            return
        sampled = [one for one in row.groups if one.origin == "sampled"]
        strays = {(one.engine, version) for one in sampled for version in (one.version, one.newest)} - self.loaded
        for engine, version in sorted(strays, key=str):
            if version is not None and version >= self.first:
                yield f"step {row.step}: {engine} sampled with weights {version}, which it had not loaded"


def check_weights(record: RunRecord) -> Iterator[str]:
    """Every engine holds the bytes that were published as the version it says, and samples with what it has loaded."""
    weights = Weights()
    for row in record.books:
        if row.attempt != weights.attempt:
            weights.begin(row, record.get_bucket_size(row.attempt))
        yield from weights.take_published(row)
        yield from weights.take_loads(row)
        yield from weights.take_groups(row)
    for row in record.steps:
        if record.config.sampled_prompts and row.step + 1 not in weights.published:
            yield f"step {row.step}: weights {row.step + 1} were not published"
