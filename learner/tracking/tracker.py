"""Writes everything a run leaves to look at: metrics, evaluations, samples, events, a summary, and the screen.

A line that the disk refuses is lost, counted and shown. Behind a disk that hangs lines wait, and training goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from PIL import Image

from common.config.schema import Config, config_hash, flatten
from common.data.image import read_pixels
from common.types import Pixels, ScoredGroup, StoredPicture
from learner.evaluation.measures import HELD_OUT, SCALARS
from learner.storage.disk import Disk
from learner.storage.environment import git_sha
from learner.storage.files import append_jsonl, keep_steps, read_jsonl, replace_text
from learner.storage.run_folder import RunFolder
from learner.tracking.books import BOOKS, StepBooks, compute_longest, rewind_books
from learner.tracking.bottleneck import BottleneckWatch, describe_bottleneck
from learner.tracking.closing import format_closing
from learner.tracking.console import Console
from learner.tracking.records import Cause, History, StepRecord, Summary
from learner.tracking.samples import choose_samples, sample_row
from learner.tracking.services.courier import Couriers
from learner.tracking.services.service import RunFacts, SentSample
from learner.tracking.tensorboard import ScalarWriter
from learner.tracking.watch import Alarm, CollapseWatch

SERVICE_ID = "trackers.id"  # the run's name at other trackers
_THUMBNAIL = 128  # pixels, longer side


class Follower(Protocol):
    """Is told of what a run logs. It may raise OSError, which is counted, and nothing else."""

    def step(self, record: StepRecord) -> None:
        """Take a step."""

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take an event, of any thread."""


class Tracker:
    """Logs one run. `metrics.jsonl` has one line a step, TensorBoard the same numbers."""

    def __init__(
        self, folder: RunFolder, config: Config, console: Console, *, first_step: int = 0, dropped: int = 0
    ) -> None:
        """Go on from `first_step`: rows of that step and later ones are removed, since the run takes those steps again.

        Evaluations after `first_step` steps stay, since they are of the weights resumed from. So does every event.

        Args:
            dropped: groups that were dropped until then, some maybe by a `first_step` that was left out.
        """
        self._lock = threading.RLock()  # the fleet's thread has events too
        self.failures = 0
        self.followers: list[Follower] = []
        self.history = History()
        self.watch, self.bottlenecks = CollapseWatch(config), BottleneckWatch(config)
        self._folder, self._config, self._console = folder, config, console
        self._path = folder.path
        self._disk = Disk()
        self._scalars = ScalarWriter(self._path / "tensorboard", first_step=first_step)
        self.attempt = 0  # starts of this run before this one
        self.notes = 0  # steps, evaluations and events so far, but for those of a hang: each is progress
        self._recall(first_step, dropped)
        self._couriers = self._open_couriers()
        console.open(folder.shown, self.history, first_step=first_step)
        self.event(
            "start",
            first_step=first_step,
            config_hash=config_hash(config),
            pid=os.getpid(),
            host=socket.gethostname(),
            longest_s=compute_longest(config),
            bucket_mb=config.weights.bucket_mb,  # a checksum of weights is one of buckets
        )

    def write(self, record: StepRecord) -> None:
        """Log one step."""
        row = record.flat()
        self.notes += 1
        self.history.add_step(row)
        self._write(lambda: append_jsonl(self._path / "metrics.jsonl", record.row()))
        scalars = {key: value for key, value in row.items() if key != "step"}
        self._write(lambda: self._scalars.write(record.step, scalars))
        self._couriers.log(record.step, scalars)
        with self._count_failures():
            self._console.step(record)
        for follower in self.followers:
            with self._count_failures():
                follower.step(record)
        self._warn(self.watch.observe(row))
        if found := self.bottlenecks.observe(row):
            self.event("bottleneck", **describe_bottleneck(found))
        self._push()

    def keep_books(self, books: StepBooks) -> None:
        """Append the row of a step to `books.jsonl`, before its record."""
        self._write(lambda: append_jsonl(self._path / BOOKS, books.row()))

    def keep(self, work: Callable[[], object]) -> None:
        """Write something else to the run folder. A failure is counted, and no more."""
        self._write(work)

    def evaluation(self, step: int, *lines: Mapping[str, Any]) -> None:
        """Log the measures after `step` optimizer steps, one row a set."""
        self.notes += 1
        again = step in self.history.evaluations
        for line in lines:
            self.history.add_evaluation(step, line)
        path = self._path / "evaluations.jsonl"

        def write_lines() -> None:
            if again:
                keep_steps(path, lambda kept: kept != step)
            for line in lines:
                append_jsonl(path, {"step": step, **line})

        self._write(write_lines)
        scalars = {tag: value for line in lines for tag, value in _list_scalars(line).items()}
        self._write(lambda: self._scalars.write(step, scalars))
        self._couriers.log(step, scalars)
        with self._count_failures():
            self._console.evaluation(step, {line.get("set", HELD_OUT): line for line in lines})
        for line in lines:
            self._warn(self.watch.observe_evaluation(step, line))
        self._push()

    def samples(self, step: int, groups: Sequence[ScoredGroup], count: int) -> None:
        """Keep the first `count` groups of a step, and those of highest and lowest reward.

        Each is a row of `samples.jsonl`, with a thumbnail of its image under `samples/`.
        """
        from learner.objective.advantages import compare_groups  # torch is slow to import

        compared, sent = compare_groups(groups, self._config), []
        for number, (group, kept_for) in enumerate(choose_samples(groups, count)):
            image = group.prompt.example.image
            name = f"samples/{step:06}-{number}.png" if image is not None else None
            row = sample_row(step, name, group, kept_for, compared.get(group.prompt.id))
            self._write(partial(self._write_sample, image, name, row))
            sent.append(_make_sent(group, self._path / name if name else None))
        self._couriers.log_samples(step, sent)
        if groups:
            with self._count_failures():
                self._console.sample(groups[0])

    def _write_sample(self, image: Pixels | StoredPicture | None, name: str | None, row: dict[str, Any]) -> None:
        if image is not None and name is not None:
            self._thumbnail(image, name)
        append_jsonl(self._path / "samples.jsonl", row)

    def keep_batch(self, step: int, groups: Sequence[ScoredGroup]) -> Path:
        """Write all groups of a step to a file of their own, token by token, without pictures. Return where it is."""
        file = self._path / f"batch-{step:06}.jsonl"

        def write_rows() -> None:
            file.unlink(missing_ok=True)  # of an earlier start, which ended here too
            for group in groups:
                row = sample_row(step, None, group, "all", None)
                for said, completion in zip(row["completions"], group.group.completions, strict=True):
                    said |= {"token_ids": completion.token_ids, "token_logprobs": completion.logprobs}
                append_jsonl(file, row)

        self._write(write_rows)
        return file

    def note_hang(self, seconds: float, why: str, stacks: str) -> None:
        """Log that nothing got on for so long, and append the stacks of all processes to `stacks.txt`."""
        file = self._path / "stacks.txt"

        def write_stacks() -> None:
            with file.open("a", encoding="utf-8") as out:
                out.write(stacks)

        self._write(write_stacks)
        self.event("hang", seconds=round(seconds), why=why, stacks=self._folder.show(file.name))

    def event(self, kind: str, **fields: Any) -> None:
        """Append to `events.jsonl`: versions, faults, heals, drops, checkpoints."""
        self.notes += kind != "hang"
        row = {"wall": time.time(), "monotonic": time.monotonic(), "kind": kind, **fields}
        self._write(lambda: append_jsonl(self._path / "events.jsonl", row))
        with self._count_failures():
            self._console.event(kind, fields)
        for follower in self.followers:
            with self._count_failures():
                follower.event(kind, fields)

    def _warn(self, alarms: Sequence[Alarm]) -> None:
        for one in alarms:
            self.event(one.kind, step=one.step, what=one.what, advice=one.advice)

    def rewind(self, step: int, dropped: int) -> None:
        """Remove rows of `step` and later ones: this start takes those steps again.

        Args:
            dropped: groups that were dropped until then.
        """
        with self._lock:
            attempt, self.history, self.watch = self.attempt, History(), CollapseWatch(self._config)
            self._scalars = ScalarWriter(self._path / "tensorboard", first_step=step)
            self._recall(step, dropped)
            self.attempt = attempt
            with self._count_failures():
                self._console.open(self._folder.shown, self.history, first_step=step)

    def phase(self, what: str, seconds: float) -> None:
        """Log that a part of the start-up is done: `phase("engines up", 14.2)`."""
        self.event("phase", what=what, seconds=seconds)
        with self._count_failures():
            self._console.phase(what, seconds)

    @contextmanager
    def time_phase(self, what: str) -> Iterator[None]:
        """Time the block as a part of the start-up, and log it with `phase` once it is done."""
        began = time.monotonic()
        yield
        self.phase(what, time.monotonic() - began)

    def summary(
        self,
        *,
        outcome: str,
        steps: int,
        wall_seconds: float,
        startup_seconds: float,
        weights_version: int,
        checkpoint_failures: int = 0,
        stopped_early: str | None = None,
        cause: Cause | None = None,
    ) -> Summary:
        """Write `summary.json` from the arguments and the history, and return it."""
        found = self.bottlenecks.find()
        summary = self.history.summarize(
            bottleneck=describe_bottleneck(found) if found else None,
            outcome=outcome,
            cause=cause,
            stopped_early=stopped_early,
            steps=steps,
            wall_seconds=wall_seconds,
            startup_seconds=startup_seconds,
            weights_version=weights_version,
            checkpoint_failures=checkpoint_failures,
            log_failures=self.failures + self._couriers.failures,
            warnings=tuple(self.watch.told),
            config_hash=config_hash(self._config),
            git_sha=git_sha(),
        )
        text = json.dumps(dataclasses.asdict(summary), indent=2) + "\n"
        self._write(lambda: replace_text(self._path / "summary.json", text))
        return summary

    def close(self, summary: Summary | None = None, report: Path | None = None) -> None:
        """End the display with the closing lines, if there is a summary, and the run folder."""
        self._couriers.close(summary.outcome if summary else "failed")
        lines = format_closing(summary, self._folder, self._config, self.failures, report) if summary else []
        with self._count_failures():
            self._console.close([*lines, f"run folder: {self._folder.address}"])

    def _open_couriers(self) -> Couriers:
        """Begin to open the run at every tracker, under an id that all of its starts share."""
        services, path = self._config.tracking.services, self._path / SERVICE_ID
        if services and not path.exists():
            self._write(lambda: replace_text(path, uuid4().hex[:12]))
        facts = RunFacts(
            id=path.read_text().strip() if services and path.exists() else self._folder.shown,
            name=self._config.name,
            project=self._config.tracking.project,
            config=flatten(self._config),
            folder=self._path,
        )
        return Couriers(services, facts, on_failure=self._tell_service_failure)

    def _tell_service_failure(self, service: str, why: str) -> None:
        self.event("tracker_failed", tracker=service, why=why)

    def _push(self) -> None:
        """Begin to copy to the bucket what was written, if the run folder is in one. A failure is an event."""
        if why := self._folder.push():
            self.event("upload_failed", why=why)

    def _write(self, work: Callable[[], object]) -> None:
        """Write to the disk, for at most some seconds. What it refuses or does not do in time is counted."""
        with self._count_failures():
            self._disk.write(work)

    @contextmanager
    def _count_failures(self) -> Iterator[None]:
        """Let one thread write at a time. Count an OSError of the block as a failure, and show the first."""
        with self._lock:
            try:
                yield
            except OSError as error:
                self.failures += 1
                if self.failures == 1:  # the rest is counted: a full disk would say so every step
                    with suppress(OSError):
                        self._console.event("log_failed", {"why": error})

    def _recall(self, first_step: int, dropped: int) -> None:
        """Remove what is on file about `first_step` and later, and read the rest into the history."""
        past = {"metrics": first_step - 1, "samples": first_step - 1, "evaluations": first_step}
        for name, last in past.items():
            with self._count_failures():
                keep_steps(self._path / f"{name}.jsonl", range(last + 1).__contains__)
        with self._count_failures():
            rewind_books(self._path / BOOKS, first_step, dropped)
            self.attempt = sum(row.get("kind") == "start" for row in read_jsonl(self._path / "events.jsonl"))
        with self._count_failures():
            for image in (self._path / "samples").glob("[0-9]*-[0-9]*.png"):
                if int(image.name.split("-")[0]) >= first_step:
                    image.unlink()
        with self._count_failures():
            for row in read_jsonl(self._path / "metrics.jsonl"):
                self.history.add_step(row)
                self.watch.observe(row)  # told by the start that took the step
            for row in read_jsonl(self._path / "evaluations.jsonl"):
                self.history.add_evaluation(row["step"], row)
                self.watch.observe_evaluation(row["step"], row)

    def _thumbnail(self, image: Pixels | StoredPicture, name: str) -> None:
        path = self._path / name
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(read_pixels(image))
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        picture.save(path)


def _make_sent(group: ScoredGroup, image: Path | None) -> SentSample:
    """Make what trackers show of a group."""
    completions = zip(group.group.completions, group.rewards, strict=True)
    return SentSample(
        image=image,
        problem=group.prompt.example.problem,
        label=group.prompt.example.label,
        completions=[(one.text, reward) for one, reward in completions],
    )


def _list_scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return {"evaluation/accuracy": 0.9, ...} of the held-out rows, {"evaluation/new/accuracy": 0.9, ...} of a set."""
    name = line.get("set", HELD_OUT)
    head = "evaluation" if name == HELD_OUT else f"evaluation/{name}"
    return {f"{head}/{key}": line[key] for key in SCALARS if line.get(key) is not None}
