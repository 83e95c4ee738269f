"""A run, opened from top to bottom: its parts start side by side, and are closed in reverse, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from common.command import Grace, Terminated
from common.data.feed import PromptFeed
from learner.driver.autoscaler import request_nodes
from learner.driver.cluster import connect, count_resources, require
from learner.driver.finish import Finish, close_undisturbed
from learner.driver.ledger import Ledger
from learner.driver.parity_probe import ParityProbe
from learner.driver.preflight.run_inputs import RunInputs
from learner.driver.profiler import Profiler
from learner.driver.run import Run
from learner.driver.vision_cache import VisionCache
from learner.driver.weight_sync import WeightSync
from learner.storage.checkpoint import Checkpointer
from learner.storage.checkpoint_store import CheckpointStore
from learner.storage.resume import describe_start, find_resume_point
from learner.storage.run_folder import RunFolder
from learner.tracking.console import open_console
from learner.tracking.tracker import Tracker
from learner.trainer.group import LearnerGroup
from learner.trainer.offline_groups import OfflineGroups
from rollout.fleet import RolloutFleet
from rollout.reward_pool import RewardPool
from rollout.spec import engine_spec


@contextmanager
def open_run(inputs: RunInputs, folder: RunFolder, *, started: float, grace: Grace) -> Iterator[Run]:
    """Open everything a run needs, with the weights of its first step in every engine; at the end close all of it.

    A block that ends well leaves exported weights, one that SIGTERM ends a checkpoint of its last step. However it
    ends, `summary.json` says so.

    Args:
        started: `time.monotonic()` at the start of the process, for the summary.
        grace: handles SIGTERM.
    """
    config = inputs.config
    store = CheckpointStore(folder.checkpoints, keep=config.checkpoint.keep, best_by=config.checkpoint.best_by)
    point = find_resume_point(config, folder, store)
    if config.resume:
        print(describe_start(point), flush=True)
    folder.begin(config)
    first_step = point.state.step if point else 0
    tracker = Tracker(folder, config, open_console(config), first_step=first_step)
    finish = Finish(tracker=tracker, folder=folder, config=config, started=started, version=first_step)
    with finish, close_undisturbed() as parts:
        _join_cluster(inputs, tracker, parts)
        run = _start_parts(inputs, folder, tracker, store, parts, grace)
        _wait_for_parts(run)
        if point:
            run.restore(point)
        with tracker.time_phase("first weights published"):
            run.publish(run.version)
        finish.startup_seconds = time.monotonic() - started
        tracker.phase("everything up", finish.startup_seconds)
        try:
            yield run
        except Terminated:
            run.save_before_leaving()
            raise
        finally:
            grace.end()
            finish.version, finish.checkpoint_failures = run.version, run.checkpoints.failures
        run.profiler.stop()
        if config.checkpoint.export:
            run.learner.export(folder.export)


def _join_cluster(inputs: RunInputs, tracker: Tracker, parts: ExitStack) -> None:
    """Join or start the cluster, and wait until it has room for the whole run."""
    config = inputs.config
    with tracker.time_phase("cluster up"):
        parts.enter_context(connect(config.cluster))
        with request_nodes(config):
            require(count_resources(config), wait_s=config.cluster.wait_for_resources_s)


def _start_parts(
    inputs: RunInputs, folder: RunFolder, tracker: Tracker, store: CheckpointStore, parts: ExitStack, grace: Grace
) -> Run:
    """Start the parts side by side, and wait for none of them."""
    config, model = inputs.config, inputs.model
    learner = LearnerGroup(
        config,
        model_path=model.path,
        banned=model.banned,
        steps=config.steps,
        tower_runs=not model.caches_vision,
    )
    parts.enter_context(closing(learner))
    spec = engine_spec(config, model_path=model.path, banned=model.banned)
    fleet = parts.enter_context(closing(RolloutFleet(config, spec, on_event=tracker.event)))
    rewards = parts.enter_context(closing(RewardPool(config.reward, config.data)))
    feed = parts.enter_context(closing(PromptFeed(inputs.stream(), model.encoder, timeout_s=config.data.timeout_s)))
    return Run(
        inputs=inputs,
        tracker=tracker,
        ledger=Ledger(on_event=tracker.event, max_drop_share=config.reward.max_drop_share),
        fleet=fleet,
        rewards=rewards,
        learner=learner,
        weight_sync=WeightSync(learner, fleet, nccl=config.weights.transport == "nccl"),
        probe=ParityProbe(fleet, learner, config, family=model.family, on_event=tracker.event),
        feed=feed,
        offline=OfflineGroups(config, model.closed_set),
        vision_cache=VisionCache(learner, cache_bytes=config.data.cache_mb << 20) if model.caches_vision else None,
        checkpoints=Checkpointer(
            store, every=config.checkpoint.every, estimate=learner.checkpoint_bytes, on_event=tracker.event
        ),
        profiler=Profiler(config, folder.path / "profile", (fleet, learner)),
        grace=grace,
    )


def _wait_for_parts(run: Run) -> None:
    """Wait until every rank and every engine holds its model."""
    config = run.config
    with run.tracker.time_phase(f"{config.learner.ranks} learner rank(s) up"):
        run.learner.ready(config.learner.start_timeout_s)
    with run.tracker.time_phase(f"{config.rollout.engines} engine(s) up"):
        run.fleet.ready()
