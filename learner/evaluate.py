"""Entry point: `python -m learner.evaluate --model M [--data [NAME=]PATH[@SPLIT]] ... [--config RECIPE] [KEY=VALUE]...`

Nothing is trained: engines serve each model's own weights, and a learner only scores candidates. An untrained model
gives the zero-shot baseline, and in its closed-set column the closed-set baseline.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import Command, Grace, run_command, say
from learner.guard.line import Line
from learner.guard.parent import run_guarded

if TYPE_CHECKING:
    from common.config.schema import Config
    from learner.driver.evaluator import Evaluator
    from learner.driver.preflight.evaluation import EvaluationTarget
    from learner.storage.run_folder import RunFolder

RELEASE_S = 30.0  # within which the resources of the model before are free again


def evaluate(
    targets: Sequence[EvaluationTarget],
    folder: RunFolder,
    command: Command,
    line: Line,
    *,
    cls_rl_file: Path | None,
) -> None:
    """Ask every model about every set, one model after the other; write and show what came of it."""
    from learner.driver.cluster import connect
    from learner.evaluation.results import Results
    from learner.guard.cause import explain_ray_errors

    results, grace, cluster = Results(folder.path), Grace(0.0), targets[0].config.cluster
    grace.install()  # Ray swallows a Ctrl-C while its actors start: `release` raises it again
    line.tell(heartbeat_s=cluster.heartbeat_s)
    with line.beat(), explain_ray_errors(), connect(cluster, line):
        command.begin_work()
        for target in targets:
            results.add_model(target.name, target.config, target.model.path)
            with _open_evaluator(target, grace, line) as evaluator:
                for one, rows in evaluator.give_verdicts(target.sets):
                    results.add_set(target.name, one, rows)
                    grace.release()
    say(f"{results.finish(cls_rl_file)}\nwritten: {folder.shown}")


@contextmanager
def _open_evaluator(target: EvaluationTarget, grace: Grace, line: Line) -> Iterator[Evaluator]:
    """Start engines that serve the target's own weights, and a learner where a set needs one to score candidates."""
    from learner.driver.evaluator import Evaluator
    from learner.driver.finish import close_undisturbed
    from learner.driver.hosts import check_hosts, share_model
    from learner.driver.places import reserve_places
    from learner.trainer.group import LearnerGroup
    from rollout.fleet.fleet import OWN_WEIGHTS, RolloutFleet
    from rollout.spec import engine_spec

    config, model, learner = target.config, target.model, None
    with close_undisturbed(line) as parts:
        places = parts.enter_context(reserve_places(_leave_out_unused(target), grant_s=RELEASE_S))
        check_hosts(config, None, places)
        shared = share_model(model.path, config.model.revision, places, grows=False)
        if places.learner:
            learner = LearnerGroup(config, model_path=shared, banned=model.banned, steps=0, place=places.learner)
            parts.callback(learner.close)
        spec = replace(engine_spec(config, model_path=model.path, banned=model.banned), model_path=shared)
        fleet = RolloutFleet(config, spec, on_event=_print_event, places=places.engines)
        parts.callback(fleet.close)
        grace.release()
        if learner:
            learner.ready(config.learner.start_timeout_s)
        fleet.ready()
        grace.release()
        fleet.publish(OWN_WEIGHTS)
        yield Evaluator(
            config=config,
            fleet=fleet,
            learner=learner,
            closed_set=model.closed_set,
            encode=lambda examples: [model.encoder.encode(example) for example in examples],
        )


def _open_folder(config: Config, out: Path | None) -> AbstractContextManager[RunFolder]:
    """Open `out`, or `runs/<date>-evaluate`, as a run folder."""
    from common.errors import RunFolderError
    from learner.storage.run_folder import RunFolder

    place = config.model_copy(update={"name": "evaluate", "run_dir": out, "resume": None})
    try:
        return closing(RunFolder.open(place, now=datetime.now().astimezone()))
    except RunFolderError as error:
        if out is None:
            raise
        raise RunFolderError(f"--out: {error.what}", got=error.got, remedy="name another folder") from error


def _leave_out_unused(target: EvaluationTarget) -> Config:
    """Return the configuration without the parts that an evaluation does not start: reward workers, idle ranks."""
    left_out: dict[str, Any] = {"reward": target.config.reward.model_copy(update={"workers": 0})}
    if not target.needs_learner:
        left_out["learner"] = target.config.learner.model_copy(update={"ranks": 0})
    return target.config.model_copy(update=left_out)


def _print_event(kind: str, **fields: Any) -> None:
    from learner.tracking.lines import QUIET, format_event

    if kind not in QUIET:
        say("event " + format_event(kind, fields))


def main(argv: Sequence[str] | None = None, line: Line | None = None) -> int:
    """Run the command line, as the child of a parent process where there is a line to one.

    Exit codes: 0 done, 1 failed, 2 refused, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM."""
    with run_command() as command:
        from learner.driver.preflight.capacity import check_capacity
        from learner.driver.preflight.evaluation import read_target
        from learner.evaluation.args import parse

        asked = parse(sys.argv[1:] if argv is None else argv)
        models = asked.models.items()
        with _open_folder(next(iter(asked.models.values())), asked.out) as folder:
            targets = [read_target(config, name, held_out=asked.held_out, say=say) for name, config in models]
            for target in targets:
                check_capacity(_leave_out_unused(target), say=say if asked.dry_run else None)
            if asked.dry_run:
                say("a dry run: nothing was started")
            else:
                command.outlive_output()
                evaluate(targets, folder, command, line or Line(), cls_rl_file=asked.cls_rl_file)
    return command.exit_code


if __name__ == "__main__":
    sys.exit(run_guarded(main))
