"""Entry point: `python -m learner.main [--config recipe.yaml] [--a.b value | a.b=value]...`

`train` is the system. The rest of this file opens its parts and turns its end into an exit code.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from common.command import Command, Grace, run_command, say
from common.config import cli
from learner.guard.line import Line
from learner.guard.parent import run_guarded

if TYPE_CHECKING:
    from common.config.schema import Config
    from learner.driver.run import Run


def train(run: Run) -> None:
    """One step a turn: sample or write answers, score, learn, publish, write down."""
    from learner.driver.clock import StepClock

    run.evaluate()
    while (step := run.version) < run.end:
        clock = StepClock()
        batch = run.begin_batch()
        while prompts := run.next_prompts(batch):  # P prompts; then, if wanted, one for each group without signal
            groups = clock.iterate("generate", run.groups(prompts))  # of G completions each, as they finish
            for scored in clock.iterate("reward", run.score(prompts, groups)):  # range by range, in prompt order
                batch.add(scored)
                with clock.stage("learn"):
                    run.learn_ahead(step, batch)  # from this range, while engines sample the next
        with clock.stage("learn"):
            result = run.learn(step, batch.groups)  # policy and reference log-probs, loss, optimizer step
        if not result.updates:  # loss or gradient was no finite number: the weights are as they were
            run.skip(step, batch, result)
            continue
        with clock.stage("publish"):
            run.publish(step + 1)  # engines that are asked next hold version step + 1, their caches reset
        run.write(step, batch, result, clock)
        run.evaluate()
        run.save()


def main(argv: Sequence[str] | None = None, line: Line | None = None) -> int:
    """Run the command line, as the child of a parent process where there is a line to one.

    Exit codes: 0 done, 1 failed, 2 refused, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.
    """
    with run_command() as command:
        invocation = cli.parse(sys.argv[1:] if argv is None else argv)
        if invocation.print_config:
            print(cli.dump(invocation.config), end="")  # YAML, which has escapes of its own
        elif invocation.dry_run:
            _dry_run(invocation.config)
        elif invocation.plan:
            _plan(invocation.config)
        else:
            with _open_run(invocation.config, command, line or Line()) as run:
                from learner.driver.recovery.rewind import train_through_losses

                train_through_losses(train, run)
    return command.exit_code


def _dry_run(config: Config) -> None:
    """Check all that a run checks before it touches a cluster, and say what it would reserve there."""
    from common.config.schema import LOCAL_CLUSTER
    from learner.driver.preflight.capacity import count_resources
    from learner.driver.preflight.start import check_start

    with check_start(config, say=say, dry=True):
        pass
    needs = ", ".join(f"{amount:g} {name}" for name, amount in count_resources(config).items())
    address = config.cluster.resolve_address()
    asked = "" if address == LOCAL_CLUSTER else f"; the cluster at {address} was not asked whether it has them"
    least, most = config.rollout.min_engines, config.rollout.max_engines
    grows = f" for {least} engine(s), which may become {most}" if least < most else ""
    say(f"a dry run: this would reserve {needs}{grows}; nothing was started{asked}")


def _plan(config: Config) -> None:
    """Print the memory a run would take, and on GPUs its pace, from the model's configuration alone."""
    from common.models.processor import load_model_config
    from learner.driver.preflight.model import make_embedded
    from learner.memory.plan import plan
    from learner.memory.show import device_memory, show_pace, show_plan

    model, device = make_embedded(config), device_memory(config)
    made = plan(config, model)
    for line in chain(show_plan(made, model, device), show_pace(made, load_model_config(model), device and device[0])):
        say(line)


@contextmanager
def _open_run(config: Config, command: Command, line: Line) -> Iterator[Run]:
    """Open the run folder, check everything, start all parts; close all of it at the end."""
    started = time.monotonic()
    line.tell(retries=config.retries, heartbeat_s=config.cluster.heartbeat_s, grace_s=config.checkpoint.grace_s)
    command.outlive_output()
    grace = Grace(config.checkpoint.grace_s)
    grace.install()
    from learner.driver.open_run import open_run
    from learner.driver.preflight.start import check_start

    with (
        check_start(config, say=say) as start,
        line.beat(),
        open_run(start, started=started, grace=grace, command=command, line=line) as run,
    ):
        yield run


if __name__ == "__main__":
    sys.exit(run_guarded(main))
