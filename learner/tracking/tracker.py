"""Everything a run leaves to look at: metrics, evaluations, samples, events, a summary, and the screen.

A disk that refuses a line costs that line, is counted and shown, and never stops training.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from common.config.schema import Config, RewardConfig, config_hash
from common.labels.candidates import candidates
from common.types import Pixels, ScoredGroup
from learner.evaluation.measures import HELD_OUT, SCALARS
from learner.storage.files import append_jsonl, keep_steps, read_jsonl, replace_text
from learner.storage.run_folder import RunFolder, git_sha
from learner.tracking.console import Console
from learner.tracking.records import History, StepRecord, Summary
from learner.tracking.tensorboard import ScalarWriter

_THUMBNAIL = 128  # pixels, longer side


class Tracker:
    """Writes one run. `metrics.jsonl` has one line a step, TensorBoard the same numbers."""

    def __init__(self, folder: RunFolder, config: Config, console: Console, *, first_step: int = 0) -> None:
        """Go on from `first_step`: what is on file about that step and later ones is of a future that was lost.

        Evaluations of the weights after `first_step` steps stay, since those are the weights resumed from; so does
        every event.
        """
        self.failures = 0
        self.history = History()
        self._folder, self._config, self._console = folder, config, console
        self._path = folder.path
        self._scalars = ScalarWriter(self._path / "tensorboard", first_step=first_step)
        self._recall(first_step)
        console.open(folder.shown, self.history, first_step=first_step)
        self.event("start", first_step=first_step, config_hash=config_hash(config))

    def write(self, record: StepRecord) -> None:
        """Log one step."""
        row = record.flat()
        self.history.add_step(row)
        with self._counted():
            append_jsonl(self._path / "metrics.jsonl", row)
        with self._counted():
            self._scalars.write(record.step, {key: value for key, value in row.items() if key != "step"})
        with self._counted():
            self._console.step(record)

    def evaluation(self, step: int, *lines: Mapping[str, Any]) -> None:
        """Log what was measured after `step` optimizer steps, one line a set: `accuracy` and whatever else."""
        again = step in self.history.evaluations
        for line in lines:
            self.history.add_evaluation(step, line)
        path = self._path / "evaluations.jsonl"
        with self._counted():
            if again:
                keep_steps(path, lambda kept: kept != step)
            for line in lines:
                append_jsonl(path, {"step": step, **line})
        with self._counted():
            self._scalars.write(step, {tag: value for line in lines for tag, value in _scalars(line).items()})
        with self._counted():
            self._console.evaluation(step, {line.get("set", HELD_OUT): line for line in lines})

    def samples(self, step: int, groups: Sequence[ScoredGroup], count: int) -> None:
        """Keep the first `count` groups of a step, and those of highest and lowest reward, as rows of `samples.jsonl`,
        each with a thumbnail of its image under `samples/`."""
        for number, (group, kept_for) in enumerate(_choose_samples(groups, count)):
            image = group.prompt.example.image
            name = f"samples/{step:06}-{number}.png" if image is not None else None
            with self._counted():
                if image is not None and name is not None:
                    self._thumbnail(image, name)
                append_jsonl(
                    self._path / "samples.jsonl", _sample_row(step, name, group, kept_for, self._config.reward)
                )
        if groups:
            with self._counted():
                self._console.sample(groups[0])

    def event(self, kind: str, **fields: Any) -> None:
        """Append to `events.jsonl`: versions, faults, heals, drops, checkpoints."""
        row = {"wall": time.time(), "monotonic": time.monotonic(), "kind": kind, **fields}
        with self._counted():
            append_jsonl(self._path / "events.jsonl", row)
        with self._counted():
            self._console.event(kind, fields)

    def phase(self, what: str, seconds: float) -> None:
        """A part of the start-up is done: `phase("engines up", 14.2)`."""
        self.event("phase", what=what, seconds=seconds)
        with self._counted():
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
    ) -> Summary:
        """Write `summary.json` from what is given and what was logged."""
        history = self.history
        summary = Summary(
            outcome=outcome,
            steps=steps,
            accuracy_before=history.before,
            accuracy_after=history.now if len(history.accuracies) > 1 else None,
            accuracy_step=history.last_step,
            accuracy_best=history.best[1] if history.best else None,
            wall_seconds=wall_seconds,
            startup_seconds=startup_seconds,
            completions_per_second=history.completions_per_second,
            max_logprob_gap=history.max_logprob_gap,
            weights_version=weights_version,
            checkpoint_failures=checkpoint_failures,
            log_failures=self.failures,
            config_hash=config_hash(self._config),
            git_sha=git_sha(),
        )
        with self._counted():
            replace_text(self._path / "summary.json", json.dumps(dataclasses.asdict(summary), indent=2) + "\n")
        return summary

    def close(self, summary: Summary | None = None, report: Path | None = None) -> None:
        """End the display: the closing block if the run got as far as a summary, and the run folder, last."""
        lines = closing_block(summary, self._folder, self._config, self.failures, report) if summary else []
        with self._counted():
            self._console.close([*lines, f"run folder: {self._folder.shown}"])

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failures += 1
            if self.failures == 1:  # the rest is counted: a full disk would say so every step
                with suppress(OSError):
                    self._console.event("log_failed", {"why": error})

    def _recall(self, first_step: int) -> None:
        """Cut the files back to what `first_step` has for its past, and remember that."""
        past = {"metrics": first_step - 1, "samples": first_step - 1, "evaluations": first_step}
        for name, last in past.items():
            with self._counted():
                keep_steps(self._path / f"{name}.jsonl", range(last + 1).__contains__)
        with self._counted():
            for image in (self._path / "samples").glob("*.png"):
                if int(image.name.split("-")[0]) >= first_step:
                    image.unlink()
        with self._counted():
            for row in read_jsonl(self._path / "metrics.jsonl"):
                self.history.add_step(row)
            for row in read_jsonl(self._path / "evaluations.jsonl"):
                self.history.add_evaluation(row["step"], row)

    def _thumbnail(self, image: Pixels, name: str) -> None:
        path = self._path / name
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(image)
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        picture.save(path)


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """{"evaluation/accuracy": 0.9, ...} of the held-out rows, {"evaluation/new/accuracy": 0.9, ...} of others."""
    name = line.get("set", HELD_OUT)
    head = "evaluation" if name == HELD_OUT else f"evaluation/{name}"
    return {f"{head}/{key}": line[key] for key in SCALARS if line.get(key) is not None}


def _choose_samples(groups: Sequence[ScoredGroup], count: int) -> Iterator[tuple[ScoredGroup, str]]:
    """The first `count` groups of a step, then the one of highest and the one of lowest mean reward; none twice."""
    wanted = [(group, "first") for group in groups[:count]]
    if groups:
        wanted += [(max(groups, key=_mean_reward), "best"), (min(groups, key=_mean_reward), "worst")]
    kept: set[int] = set()
    for group, kept_for in wanted:
        if id(group) not in kept:
            kept.add(id(group))
            yield group, kept_for


def _mean_reward(group: ScoredGroup) -> float:
    return sum(group.rewards) / len(group.rewards)


def _sample_row(
    step: int, image: str | None, group: ScoredGroup, kept_for: str, reward: RewardConfig
) -> dict[str, Any]:
    from learner.objective import group_advantages

    example, said, given = group.prompt.example, group.group.completions, group.group.origin == "given"
    advantages = [None] * len(said) if given else group_advantages(group, reward).tolist()
    completions = [
        {
            "text": completion.text,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "reward": group.rewards[number],
            "advantage": advantage,  # null where nothing was sampled
            **{f"rewards/{name}": values[number] for name, values in group.rewards_by_name.items()},
        }
        for number, (completion, advantage) in enumerate(zip(said, advantages, strict=True))
    ]
    return {
        "step": step,
        "kept_for": kept_for,
        "prompt_id": group.prompt.id,
        "image": image,
        "problem": example.problem,
        "candidates": candidates(example.problem),
        "label": example.label,
        "origin": group.group.origin,
        "engine_id": group.group.engine_id,
        "weights_version": group.group.weights_version,
        "completions": completions,
        # (G,) of each whole answer, as sampled
        "logprobs": None if given else [sum(completion.logprobs) for completion in said],
    }


def closing_block(
    summary: Summary, folder: RunFolder, config: Config, log_failures: int, report: Path | None
) -> list[str]:
    """How the run ended, where things are and how to look at them."""
    minutes, seconds = divmod(round(summary.wall_seconds), 60)
    before, after, best = summary.accuracy_before, summary.accuracy_after, summary.accuracy_best
    if before is None or after is None or best is None:
        accuracy = "not evaluated" if before is None else f"{before:.3f} before; not evaluated after"
    else:
        verdict = "" if after > before else ", no better than before"
        late = "" if summary.accuracy_step == summary.steps else f", last evaluated after {summary.accuracy_step} steps"
        accuracy = f"{before:.3f} -> {after:.3f} held-out, greedy (best {best:.3f}{late}{verdict})"
    rows = {
        "accuracy": accuracy,
        "time": f"{minutes} min {seconds:02} s, of which start-up {summary.startup_seconds:.0f} s",
        "speed": f"{summary.completions_per_second:.0f} completions/s",
        "log-prob gap": f"{summary.max_logprob_gap:.1e} at most, engine to learner"
        if summary.max_logprob_gap
        else "nothing was sampled to learn from; the probe's are in events.jsonl",
        "model": str(folder.shown / "export") if folder.export.is_dir() else "none exported",
        "report": str(folder.shown / report.name) if report else "not written",
        "look": f"tensorboard --logdir {folder.shown / 'tensorboard'}",
    }
    if summary.outcome != "finished" and any(folder.checkpoints.glob("step-*")):
        rows["go on"] = f"the same command with resume={folder.shown}"
    if summary.checkpoint_failures:
        rows["checkpoints"] = f"{summary.checkpoint_failures} could not be written, see events.jsonl"
    if log_failures:
        rows["log"] = f"{log_failures} lines or files could not be written"
    head = f"{config.name}: {summary.outcome} after {summary.steps} of {config.steps} steps"
    return ["", head, *(f"  {name:<13} {value}" for name, value in rows.items())]
