"""The last lines on the screen: how a run ended, where things are and how to look at them."""

from __future__ import annotations

from pathlib import Path

from common.config.schema import Config
from learner.storage.run_folder import RunFolder
from learner.text import format_clock
from learner.tracking.lines import format_bottleneck
from learner.tracking.records import Summary, name_learnt


def format_closing(
    summary: Summary, folder: RunFolder, config: Config, log_failures: int, report: Path | None
) -> list[str]:
    """Return the closing lines of a run, a blank one first.

    Args:
        log_failures: lines and files that could not be written.
        report: the page, or None where it was not written.
    """
    sampled, prompts = config.sampled_prompts, config.rollout.prompts_per_step
    failed = summary.cause and summary.outcome == "failed"
    rows = {
        **({"cause": str(summary.cause)} if failed else {}),
        "accuracy": _describe_accuracy(summary),
        "time": f"{format_clock(summary.wall_seconds)}, of which start-up {format_clock(summary.startup_seconds)}",
        "speed": f"{summary.completions_per_second:.0f} {name_learnt(samples=sampled > 0, given=sampled < prompts)}/s",
        **({"bottleneck": format_bottleneck(summary.bottleneck)} if summary.bottleneck else {}),
        "log-prob gap": _describe_gap(config, summary),
        "model": folder.show("export") if folder.export.is_dir() else "none exported",
        "report": folder.show(report.name) if report else "not written",
    }
    if folder.bucket is None:
        rows["look"] = f"tensorboard --logdir {folder.show('tensorboard')}"
    if summary.outcome != "finished" and folder.holds_checkpoint():
        rows["go on"] = f"the same command with resume={folder.shown}"
    if summary.warnings:
        rows["warnings"] = f"{', '.join(summary.warnings)}: the report says what to change"
    if summary.checkpoint_failures:
        rows["checkpoints"] = f"{summary.checkpoint_failures} could not be written, see events.jsonl"
    if log_failures:
        rows["log"] = f"{log_failures} lines or files could not be written"
    why = f": {summary.stopped_early}" if summary.stopped_early else ""
    head = f"{config.name}: {summary.outcome} after {summary.steps} of {config.steps} steps{why}"
    return ["", head, *(f"  {name:<13} {value}" for name, value in rows.items())]


def _describe_gap(config: Config, summary: Summary) -> str:
    """Say how far engine and learner were apart at most: `3.0e-06 at most, engine to learner`."""
    if not (config.sampled_prompts and summary.steps):
        return "nothing was sampled to learn from; the gaps of the parity probe are in events.jsonl"
    return f"{summary.max_logprob_gap:.1e} at most, engine to learner"


def _describe_accuracy(summary: Summary) -> str:
    before, after, best = summary.accuracy_before, summary.accuracy_after, summary.accuracy_best
    if before is None or after is None or best is None:
        return "not evaluated" if before is None else f"{before:.3f} before; not evaluated after"
    verdict = "" if after > before else ", no better than before"
    late = "" if summary.accuracy_step == summary.steps else f", last evaluated after {summary.accuracy_step} steps"
    return f"{before:.3f} -> {after:.3f} held-out, greedy (best {best:.3f}{late}{verdict})"
