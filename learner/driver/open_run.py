"""A run, opened from top to bottom: its parts start side by side, and are closed in reverse, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

from common.command import Command, Grace, Terminated
from common.config.schema import LOCAL_CLUSTER
from common.data.feed import PromptFeed
from common.lean_imports import settle_collector
from common.placement import list_spare_resources, renew
from common.telemetry.reporting import Reporting, has_metrics_agent
from learner.driver.cluster import connect
from learner.driver.control.journal import Journal
from learner.driver.control.lookahead import Lookahead
from learner.driver.control.recordings import Recordings
from learner.driver.control.solve_rates import SolveRates
from learner.driver.control.steering import Steering
from learner.driver.finish import Finish, close_undisturbed
from learner.driver.hang.doctor import HangDoctor
from learner.driver.hosts import check_hosts, share_model, share_reward_models
from learner.driver.ledger import Ledger
from learner.driver.parity_probe import ParityProbe, find_gap_limits
from learner.driver.places import Places, reserve_places
from learner.driver.preflight.capacity import list_rank_requests
from learner.driver.preflight.run_inputs import RunInputs
from learner.driver.preflight.start import RunStart
from learner.driver.profiler import Profiler
from learner.driver.run import Run
from learner.driver.telemetry.driver_log import DriverLog
from learner.driver.telemetry.run_metrics import RunMetrics
from learner.driver.telemetry.worker_logs import copy_worker_logs
from learner.driver.vision_cache import VisionCache
from learner.driver.weight_sync import WeightSync
from learner.guard.cause import explain_ray_errors
from learner.guard.line import Line
from learner.storage.checkpoint import Checkpointer
from learner.storage.run_folder import RunFolder
from learner.tracking.console import open_console
from learner.tracking.tracker import Tracker
from learner.trainer.group import LearnerGroup
from learner.trainer.offline_groups import OfflineGroups
from rollout.fleet.fleet import RolloutFleet
from rollout.reward_pool import RewardPool
from rollout.spec import engine_spec


@contextmanager
def open_run(
    start: RunStart, *, started: float, grace: Grace, command: Command | None = None, line: Line | None = None
) -> Iterator[Run]:
    """Open everything a run needs, with the weights of its first step in every engine; at the end close all of it.

    A block that ends well leaves exported weights, one that a signal ends a checkpoint of its last step. However it
    ends, `summary.json` says so.

    Args:
        started: `time.monotonic()` at the start of the process, for the summary.
        grace: handles SIGTERM and SIGHUP.
        command: is told once the cluster is up, after which nothing is refused any more.
        line: to the parent process; None: there is none.
    """
    inputs, folder, point = start.inputs, start.folder, start.point
    config, line = inputs.config, line or Line()
    folder.begin(config)
    line.tell(folder=str(folder.path), place=folder.shown)
    first_step = point.state.step if point else 0
    dropped = point.state.counts.get("dropped", 0) if point else 0
    tracker = Tracker(folder, config, open_console(config), first_step=first_step, dropped=dropped)
    tracker.followers.append(DriverLog(folder.path, folder.path.name, step=first_step))
    finish = Finish(tracker=tracker, folder=folder, config=config, started=started, version=first_step)
    with finish, explain_ray_errors(), close_undisturbed(line) as parts:
        places = _join_cluster(inputs, folder, tracker, parts, command or Command(), line)
        grace.release()
        parts.callback(copy_worker_logs, folder.path, tracker)
        reporting = Reporting(run=folder.path.name, agent=has_metrics_agent())
        run = _start_parts(start, tracker, places, parts, grace, line, reporting)
        grace.release()
        _wait_for_parts(run)
        run.origin = point or run.describe_start()
        if point:
            run.restore(point)
        run.recordings.begin(run.feed.state())
        parts.enter_context(closing(_begin_metrics(run, reporting)))
        with tracker.time_phase("first weights published"):
            run.publish(run.version)
        settle_collector()
        if config.cluster.resolve_address() == LOCAL_CLUSTER:  # another may grow
            tracker.bottlenecks.spare = list_spare_resources()
        parts.enter_context(_make_doctor(run).watch())
        finish.startup_seconds = time.monotonic() - started
        tracker.phase("everything up", finish.startup_seconds)
        grace.release()
        try:
            yield run
        except Terminated:
            run.save_before_leaving()
            raise
        finally:
            grace.end()
            finish.version, finish.checkpoint_failures = run.version, run.checkpoints.failures
        if why := run.plateau:
            finish.stopped_early = why
            tracker.event("stopped_early", step=run.version, why=why)
        run.profiler.stop()
        if config.checkpoint.export:
            run.learner.export(folder.place("export"))


def _join_cluster(
    inputs: RunInputs, folder: RunFolder, tracker: Tracker, parts: ExitStack, command: Command, line: Line
) -> Places:
    """Join or start the cluster, reserve a place for every part of the run, and look at the hosts they are on."""
    config = inputs.config
    with tracker.time_phase("cluster up"):
        parts.enter_context(connect(config.cluster, line))
        command.begin_work()
        places = parts.enter_context(reserve_places(config))
        check_hosts(config, folder.bucket.place if folder.bucket else folder.path, places)
    return places


def _begin_metrics(run: Run, reporting: Reporting) -> RunMetrics:
    """Report the figures of a run from now on, where somebody reads them."""
    metrics = RunMetrics(
        run.config,
        fleet=run.fleet,
        rewards=run.rewards,
        count_answered=run.count_answered,
        gap_limits=find_gap_limits(run.config),
        steps=run.version,
        counts=run.ledger.counts(),
    )
    run.tracker.followers.append(metrics)
    metrics.begin(reporting)
    return metrics


def _start_parts(
    start: RunStart,
    tracker: Tracker,
    places: Places,
    parts: ExitStack,
    grace: Grace,
    line: Line,
    reporting: Reporting,
) -> Run:
    """Start the parts side by side, and wait for none of them."""
    inputs, folder = start.inputs, start.folder

    def note_checkpoint(kind: str, **fields: Any) -> None:
        tracker.event(kind, **fields)
        if kind == "checkpoint":
            line.tell(checkpoint=fields["step"])

    config, model = inputs.config, inputs.model
    grows = config.cluster.resolve_address() != LOCAL_CLUSTER
    shared = share_model(model.path, config.model.revision, places, grows=grows)
    learner = LearnerGroup(
        config,
        model_path=shared,
        banned=model.banned,
        steps=config.steps,
        tower_runs=not model.caches_vision,
        place=places.learner,
        renew=lambda place: renew(place, list_rank_requests(config)[0]),
        on_event=tracker.event,
        reporting=reporting,
    )
    parts.enter_context(closing(learner))
    spec = engine_spec(config, model_path=model.path, banned=model.banned)
    spec = replace(spec, model_path=shared, reporting=reporting)
    fleet = RolloutFleet(
        config,
        spec,
        on_event=tracker.event,
        places=places.engines,
        run_folder=folder.bucket.place if folder.bucket else folder.path,
    )
    parts.callback(fleet.close)
    models = share_reward_models(config.reward)
    rewards = RewardPool(
        config.reward,
        config.data,
        places=places.rewards,
        models=models,
        on_event=tracker.event,
        reporting=reporting,
    )
    parts.callback(rewards.close)
    feed = parts.enter_context(closing(_make_feed(inputs)))
    return Run(
        inputs=inputs,
        tracker=tracker,
        ledger=Ledger(on_event=tracker.event, max_drop_share=config.reward.max_drop_share),
        fleet=fleet,
        rewards=rewards,
        learner=learner,
        weight_sync=WeightSync(learner, fleet, nccl=config.weights.transport == "nccl", on_event=tracker.event),
        probe=ParityProbe(fleet, learner, config, family=model.family, on_event=tracker.event),
        feed=feed,
        offline=OfflineGroups(config, model.closed_set),
        vision_cache=VisionCache(learner, cache_bytes=config.data.cache_mb << 20) if model.caches_vision else None,
        checkpoints=Checkpointer(
            start.store, every=config.checkpoint.every, estimate=learner.checkpoint_bytes, on_event=note_checkpoint
        ),
        profiler=Profiler(config, folder.place("profile"), (fleet, learner)),
        grace=grace,
        steering=Steering(config),
        solve_rates=SolveRates(config),
        lookahead=Lookahead(steps=config.steps, max_lag=config.rollout.max_lag),
        recordings=Recordings(
            tracker,
            own=Journal(folder.path) if config.rollout.update == "in_flight" else None,
            replay=start.replay,
        ),
    )


def _make_doctor(run: Run) -> HangDoctor:
    fleet, learner, rewards, tracker = run.fleet, run.learner, run.rewards, run.tracker

    def count_progress() -> object:
        parts = [one.count_progress() for one in (fleet, learner, rewards)]
        return [*parts, run.feed.encoded, run.version, tracker.notes]

    return HangDoctor(
        limit_s=run.config.cluster.hang_s,
        count_progress=count_progress,
        list_actors=lambda: {
            "engine": fleet.list_actors(),
            "learner": learner.list_actors(),
            "reward": rewards.list_actors(),
        },
        tell=lambda found: tracker.note_hang(found.seconds, found.line, found.stacks),
    )


def _make_feed(inputs: RunInputs) -> PromptFeed:
    config = inputs.config
    ahead, timeout_s = config.rollout.prompts_per_step, config.data.timeout_s
    return PromptFeed(inputs.stream(), inputs.model.encoder, ahead=ahead, timeout_s=timeout_s)


def _wait_for_parts(run: Run) -> None:
    """Wait until every rank and every engine holds its model."""
    config = run.config
    with run.tracker.time_phase(f"{config.learner.ranks} learner rank(s) up"):
        run.learner.ready(config.learner.start_timeout_s)
    with run.tracker.time_phase(f"{config.rollout.min_engines} engine(s) up"):
        run.fleet.ready()
