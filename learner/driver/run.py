"""The parts of one run: started side by side, closed in reverse, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from common.config.schema import Config
from common.data.feed import PromptFeed
from common.data.stream import StreamState
from common.errors import DataError, EngineError
from common.types import CandidateProbabilities, Example, FailedGroup, Group, Prompt, ScoredGroup, StepResult
from learner.driver.autoscaler import request_nodes
from learner.driver.candidate_probabilities import candidate_probabilities
from learner.driver.clock import StepClock
from learner.driver.cluster import connect, count_resources, require
from learner.driver.evaluator import Evaluator
from learner.driver.finish import Finish, close_undisturbed
from learner.driver.ledger import Ledger
from learner.driver.offline_groups import OfflineGroups
from learner.driver.parity_probe import ParityProbe
from learner.driver.preflight import Admitted
from learner.driver.profiler import Profiler
from learner.driver.step_record import step_record
from learner.driver.vision_cache import VisionCache
from learner.driver.weight_sync import WeightSync
from learner.evaluation.sets import EvaluationSet
from learner.storage.checkpoint import Checkpointer, DriverState, check_compatible, read_state
from learner.storage.checkpoint_store import CheckpointStore, verify
from learner.storage.run_folder import RunFolder
from learner.tracking.console import open_console
from learner.tracking.tracker import Tracker
from learner.trainer.group import LearnerGroup
from rollout.fleet import RolloutFleet
from rollout.requests import training_requests
from rollout.reward_pool import RewardPool
from rollout.spec import engine_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A sound checkpoint and what the driver said in it."""

    folder: Path
    state: DriverState


@dataclass(slots=True, kw_only=True)
class Run:
    """What `train()` drives."""

    config: Config
    admitted: Admitted
    tracker: Tracker
    ledger: Ledger
    fleet: RolloutFleet
    rewards: RewardPool
    learner: LearnerGroup
    publisher: WeightSync
    probe: ParityProbe
    feed: PromptFeed
    writer: OfflineGroups
    tower: VisionCache | None  # None: it is trained, or its engine takes no features
    checkpoints: Checkpointer
    profiler: Profiler
    version: int = 0  # of the weights that the learner holds: optimizer steps done
    served: int | None = None  # of those that the engines hold; None: of no step of this run yet

    def restore(self, point: ResumePoint) -> None:
        """Go on exactly where a checkpoint was written."""
        self.learner.load(point.folder)
        self.feed.restore(StreamState(**point.state.stream))
        self.ledger.restore(point.state.counts)
        self.version = point.state.step

    def next_prompts(self) -> list[Prompt]:
        """P prompts, different ones."""
        self.profiler.at(self.version)
        return self._take_features(self.feed.next_batch())

    def groups(self, step: int, prompts: Sequence[Prompt]) -> Iterator[Group]:
        """One a prompt: those the method writes down, then those it samples, as the engines finish them. What they
        could not give is counted as dropped."""
        self.ledger.dispatched += len(prompts)
        sampled, written = self.writer.divide(prompts, step)
        requests = training_requests(sampled, self.config.rollout, seed=self.config.seed, step=step)
        yield from map(self.writer.group, written)
        yield from self.ledger.pass_sampled(self.fleet.generate(requests))

    def score(self, prompts: Sequence[Prompt], groups: Iterable[Group]) -> list[ScoredGroup]:
        """Scored groups in prompt order: packing order decides the last bits of the gradient.

        Raises:
            DataError: not one group of the step is left.
        """
        scored: dict[str, ScoredGroup] = {}
        believed: Mapping[str, tuple[CandidateProbabilities, ...]] = {}
        if not self.config.sampled_prompts:  # all are there, and are scored in one call
            groups = list(groups)
        if self.rewards.asks_candidate_probabilities:  # the learner is asked once, for all groups
            groups = list(groups)
            believed = candidate_probabilities(prompts, groups, self.admitted.closed_set, self.learner)
        for outcome in self.rewards.score({prompt.id: prompt for prompt in prompts}, groups, believed):
            if isinstance(outcome, FailedGroup):
                self.ledger.drop(outcome)
            else:
                scored[outcome.prompt.id] = outcome
        if not scored:
            raise DataError(
                "every group of a step was dropped",
                got=f"{len(prompts)} prompts, the first {prompts[0].id}",
                remedy="see events.jsonl for the reasons",
            )
        return [scored[prompt.id] for prompt in prompts if prompt.id in scored]

    def learn(self, step: int, scored: Sequence[ScoredGroup]) -> StepResult:
        """One optimizer step.

        Raises:
            EngineError: the engines sample from another policy than the learner scores (law 1).
        """
        result = self.learner.step(scored)
        limit = self.config.learner.max_logprob_gap
        if limit is not None and not result.logprob_gap_max <= limit:
            raise EngineError(
                f"engine and learner disagree about the policy at step {step}",
                got=f"a log-prob gap of {result.logprob_gap_max:.3g}, learner.max_logprob_gap = {limit:g}",
                remedy="the engines serve stale or damaged weights, or sample under other settings: stop and find out; "
                "if it is rounding (bfloat16), raise the limit",
            )
        return result

    def publish(self, version: int) -> None:
        """The weights as they are now are `version`, and every serving engine holds them, if it is asked for anything
        before the next ones come."""
        self.version = version
        wanted = self.config.sampled_prompts or self._to_evaluate() or version == self.config.steps
        if wanted or self.served is None:
            self.publisher.publish(version)
            self.served = version
            self.probe(version, self._first_prompts)

    def _first_prompts(self) -> list[Prompt]:
        """One for every engine and every rank: both deal them out evenly."""
        train, config = self.admitted.train, self.config
        count = min(len(train), max(config.rollout.engines, config.learner.ranks))
        return self.encode([train[index] for index in range(count)])

    def write(self, step: int, scored: Sequence[ScoredGroup], result: StepResult, clock: StepClock) -> None:
        """Log the step, and every so often some of its groups."""
        config = self.config
        self.ledger.trained += len(scored)
        record = step_record(
            step,
            scored,
            result,
            clock=clock,
            ledger=self.ledger,
            epoch=(step + 1) * config.rollout.prompts_per_step / len(self.admitted.train),
            dropped=config.rollout.prompts_per_step - len(scored),
            weights_version=self.served or 0,
            checkpoint_failures=self.checkpoints.failures,
            engine_restarts=self.fleet.restarts,
            config=config,
        )
        self.tracker.write(record)
        every = config.tracking.samples_every
        if every and step % every == 0:
            self.tracker.samples(step, scored, config.tracking.samples)

    def evaluate(self) -> None:
        """Measures of the weights as they are, on the held-out rows and other sets: first, last and every so often."""
        if sets := self._to_evaluate():
            self.tracker.evaluation(self.version, *self.evaluator.measure_sets(sets))

    def _to_evaluate(self) -> Sequence[EvaluationSet]:
        """The sets that the weights as they are now are due on."""
        version, every = self.version, self.config.evaluation.every
        due = version in (0, self.config.steps) or (every and version % every == 0)
        return self.admitted.sets if due and version not in self.tracker.history.evaluations else ()

    @property
    def evaluator(self) -> Evaluator:
        """Of what the engines serve and the learner holds."""
        return Evaluator(
            config=self.config,
            fleet=self.fleet,
            learner=self.learner,
            closed_set=self.admitted.closed_set,
            encode=self.encode,
        )

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        return self._take_features([self.admitted.encoder.encode(example) for example in examples])

    def _take_features(self, prompts: list[Prompt]) -> list[Prompt]:
        return self.tower.with_features(prompts) if self.tower else prompts

    def save(self) -> None:
        """A checkpoint when one is due, of the best weights so far, and at the end."""
        self.checkpoints.maybe_save(
            self.version,
            save=self._write_state,
            due=self.version == self.config.steps,
            score=self.tracker.history.find_measure(self.version, self.config.checkpoint.best_by),
        )

    def _write_state(self, folder: Path) -> DriverState:
        self.learner.save(folder)
        return DriverState(
            step=self.version,
            config=self.config,
            stream=asdict(self.feed.state()),
            counts=self.ledger.counts(),
            best_accuracy=self.tracker.history.best[1] if self.tracker.history.best else None,
        )


@contextmanager
def open_run(admitted: Admitted, folder: RunFolder, *, started: float) -> Iterator[Run]:
    """Everything a run needs, up and holding the weights of its first step; all of it gone at the end.

    A block that ends well leaves exported weights; however it ends, `summary.json` says so.

    Args:
        started: `time.monotonic()` at the start of the process, for the summary.
    """
    config = admitted.config
    store = CheckpointStore(folder.checkpoints, keep=config.checkpoint.keep, best_by=config.checkpoint.best_by)
    point = find_resume_point(config, folder, store)
    folder.begin(config)
    first_step = point.state.step if point else 0
    tracker = Tracker(folder, config, open_console(config), first_step=first_step)
    ending = Finish(tracker=tracker, folder=folder, started=started, version=first_step)
    with ending, close_undisturbed() as parts:
        run = _start_parts(admitted, tracker, store, parts, point, profiles=folder.path / "profile")
        ending.run = run
        ending.startup_seconds = time.monotonic() - started
        tracker.phase("everything up", ending.startup_seconds)
        yield run
        run.profiler.stop()
        if config.checkpoint.export:
            run.learner.export(folder.export)


def _start_parts(
    admitted: Admitted,
    tracker: Tracker,
    store: CheckpointStore,
    parts: ExitStack,
    point: ResumePoint | None,
    *,
    profiles: Path,
) -> Run:
    """Start the parts side by side, wait for all, and bring every engine to the weights of the first step."""
    config = admitted.config
    with time_phase(tracker, "cluster up"):
        parts.enter_context(connect(config.cluster))
        with request_nodes(config):
            require(count_resources(config), wait_s=config.cluster.wait_for_resources_s)
    learner = LearnerGroup(
        config,
        model_path=admitted.model_path,
        banned=admitted.banned,
        steps=config.steps,
        tower_runs=not admitted.tower_frozen,
    )
    parts.callback(learner.close)
    spec = engine_spec(config, model_path=admitted.model_path, banned=admitted.banned)
    fleet = RolloutFleet(config, spec, on_event=tracker.event)
    parts.callback(fleet.close)
    rewards = RewardPool(config.reward, config.data)
    parts.callback(rewards.close)
    feed = PromptFeed(admitted.stream(), admitted.encoder, timeout_s=config.data.timeout_s)
    parts.callback(feed.close)
    run = Run(
        config=config,
        admitted=admitted,
        tracker=tracker,
        ledger=Ledger(on_event=tracker.event, max_drop_share=config.reward.max_drop_share),
        fleet=fleet,
        rewards=rewards,
        learner=learner,
        publisher=WeightSync(learner, fleet, nccl=config.weights.transport == "nccl"),
        probe=ParityProbe(fleet, learner, config, family=admitted.family, on_event=tracker.event),
        feed=feed,
        writer=OfflineGroups(config, admitted.closed_set),
        tower=VisionCache(learner, cache_bytes=config.data.cache_mb << 20) if admitted.tower_frozen else None,
        checkpoints=Checkpointer(store, every=config.checkpoint.every, on_event=tracker.event),
        profiler=Profiler(config, profiles, (fleet, learner)),
    )
    with time_phase(tracker, f"{config.learner.ranks} learner rank(s) up"):
        learner.ready(config.learner.start_timeout_s)
    with time_phase(tracker, f"{config.rollout.engines} engine(s) up"):
        fleet.ready()
    if point:
        run.restore(point)
    with time_phase(tracker, "first weights published"):
        run.publish(run.version)
    return run


def find_resume_point(config: Config, folder: RunFolder, store: CheckpointStore) -> ResumePoint | None:
    """The checkpoint this start goes on from, if it is to resume and there is one.

    Raises:
        CheckpointError: the one named is not sound, none is, or it was written under another configuration.
    """
    if config.resume is None:
        return None
    if folder.checkpoint is not None:
        verify(folder.checkpoint)
        path: Path | None = folder.checkpoint
    else:
        found = store.newest()
        path = found.path if found else None
    if path is None:
        return None
    state = read_state(path)
    check_compatible(state.config, config)
    return ResumePoint(folder=path, state=state)


@contextmanager
def time_phase(tracker: Tracker, what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    tracker.phase(what, time.monotonic() - began)
