"""One run as `train()` drives it: prompts, groups, scores, an optimizer step, weights out, records, evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from common.command import Grace
from common.config.schema import Config
from common.data.feed import PromptFeed
from common.data.stream import StreamState
from common.errors import CheckpointError, DataError, LearnerError, describe_cause, raise_as
from common.storage.output import Place, WriteReport
from common.types import CandidateProbabilities, Example, FailedGroup, Group, Prompt, ScoredGroup, StepResult
from learner.driver.candidate_probabilities import compute_candidate_probabilities
from learner.driver.clock import StepClock
from learner.driver.control.group_sizes import choose_group_sizes
from learner.driver.control.lookahead import AskedStep, Lookahead
from learner.driver.control.plateau import find_plateau
from learner.driver.control.prompt_ranges import PromptRanges
from learner.driver.control.recordings import Recordings
from learner.driver.control.solve_rates import SolveRates
from learner.driver.control.steering import Steering
from learner.driver.control.step_batch import StepBatch
from learner.driver.control.step_books import make_step_books
from learner.driver.evaluator import Evaluator
from learner.driver.ledger import Ledger
from learner.driver.parity_probe import ParityProbe, check_gaps
from learner.driver.preflight.run_inputs import RunInputs
from learner.driver.profiler import Profiler
from learner.driver.step_record import make_step_record
from learner.driver.vision_cache import VisionCache
from learner.driver.weight_sync import WeightSync
from learner.evaluation.sets import EvaluationSet
from learner.storage.checkpoint import Checkpointer, DriverState
from learner.storage.resume import ResumePoint
from learner.tracking.books import Published
from learner.tracking.tracker import Tracker
from learner.trainer.group import LearnerGroup
from learner.trainer.microbatches import divide
from learner.trainer.offline_groups import OfflineGroups
from rollout.fleet.fleet import RolloutFleet
from rollout.requests import training_requests
from rollout.reward_pool import RewardPool


@dataclass(slots=True, kw_only=True)
class Run:
    """The parts of a run, and what `train()` does with them."""

    inputs: RunInputs
    tracker: Tracker
    ledger: Ledger
    fleet: RolloutFleet
    rewards: RewardPool
    learner: LearnerGroup
    weight_sync: WeightSync
    probe: ParityProbe
    feed: PromptFeed
    offline: OfflineGroups
    vision_cache: VisionCache | None  # None: the vision tower is trained, or its engine takes no features
    checkpoints: Checkpointer
    profiler: Profiler
    grace: Grace
    steering: Steering
    solve_rates: SolveRates
    lookahead: Lookahead
    recordings: Recordings = field(default_factory=Recordings)
    asked: AskedStep | None = None  # whose groups come next
    version: int = 0  # of the weights that the learner holds: optimizer steps done
    ahead: Sequence[AskedStep] = ()  # steps that were asked before the last whole step ended, and not yet learned
    origin: ResumePoint | DriverState | None = None  # the checkpoint resumed from, or the state before any step
    whole: DriverState | None = None  # after the last step; None within one, whose weights may be half new
    skipped_in_a_row: int = 0  # steps whose loss or gradient was no finite number
    served: int | None = None  # version of the weights that the engines hold; None: of no step of this run yet
    published: list[Published] = field(default_factory=list)  # versions since the last row of the books

    @property
    def config(self) -> Config:
        return self.inputs.config

    @property
    def end(self) -> int:
        """The optimizer steps after which the run is over: `steps`, or those done where a plateau ends it now."""
        return self.config.steps if self.plateau is None else self.version

    @property
    def plateau(self) -> str | None:
        """Why `evaluation.stop_after` ends the run before its last step; None where it does not."""
        evaluation, best_by = self.config.evaluation, self.config.checkpoint.best_by
        if evaluation.stop_after is None or self.version >= self.config.steps:
            return None
        measured = self.tracker.history.list_measures(best_by)
        best = find_plateau(measured, stop_after=evaluation.stop_after, stop_delta=evaluation.stop_delta)
        if best is None:
            return None
        more = f" by more than {evaluation.stop_delta:g}" if evaluation.stop_delta else ""
        return f"{best_by} did not rise above {best:.3f}{more} in {evaluation.stop_after} evaluations"

    def restore(self, point: ResumePoint) -> None:
        """Go on exactly where the checkpoint was written: weights, data, counts.

        Raises CheckpointError, or DataError where the rows are others, for a checkpoint that cannot be used.
        """
        self.learner.load(point.place, point.reports, at=point.state.step)
        with raise_as(
            CheckpointError,
            f"the driver's state in checkpoint {point.place} cannot be used",
            remedy="resume from a checkpoint as a run wrote it",
        ):
            self._restore_state(point.state)
        self.checkpoints.newest = point.state.step

    def _restore_state(self, state: DriverState) -> None:
        """Go on with what the driver remembered."""
        rows = {outline.id for outline in self.inputs.data.train.outlines}
        self.feed.restore(StreamState(**state.stream))
        self.ledger.restore(state.counts)
        self.steering.restore(state.control["steering"])
        self.solve_rates.restore(state.control["solve_rates"], rows)
        self.lookahead.restore(state.control["ahead"], self._recall)
        self.version = state.step

    def return_to(self, point: ResumePoint | DriverState) -> None:
        """Go back to a checkpoint or to the start of the run, with ranks that were built anew."""
        if self.vision_cache:
            self.vision_cache.clear()
        self.whole, self.ahead, self.asked, self.served, self.skipped_in_a_row = None, (), None, None, 0
        self.published = []
        self.ledger.take_reasons()
        self.fleet.take_loads()
        if isinstance(point, ResumePoint):
            self.restore(point)
        else:
            self._restore_state(point)
        self.recordings.reopen()
        self.grace.release()

    def forget_asked(self) -> None:
        """Let engines sample nothing more of what was asked."""
        for asked in [*self.lookahead.asked, *([self.asked] if self.asked else [])]:
            for batch in asked.batches:
                if batch.open:
                    self.fleet.forget(batch)

    def _recall(self, drawn: Sequence[tuple[str, int]]) -> list[Prompt]:
        return self._use_features(self.feed.recall(drawn))

    def begin_batch(self) -> StepBatch:
        """Begin the next step. Engines are asked for it, and for as many steps ahead as `rollout.max_lag` says."""
        self.profiler.begin_step(self.version)
        for number in self.lookahead.list_missing(self.version):
            drawn = self.feed.take(self.config.rollout.prompts_per_step, wanted=self.solve_rates.wants)
            self.lookahead.asked.append(self._ask(number, drawn))
        return StepBatch(self.config)

    def _ask(self, number: int, drawn: Sequence[tuple[Prompt, int]]) -> AskedStep:
        """Let the engines begin with the prompts of a step, those whose answers the method gives left out."""
        prompts = self._use_features([prompt for prompt, _ in drawn])
        self.ledger.dispatched += len(prompts)
        epochs = [epoch for _, epoch in drawn]
        asked = AskedStep(number=number, drawn=list(zip(prompts, epochs, strict=True)))
        if self.recordings.recall(asked):
            return asked
        sampled, _ = self.offline.divide(prompts, number)
        sizes = choose_group_sizes(self.solve_rates, [prompt.id for prompt in sampled], self.config)
        requests = training_requests(sampled, self.config.rollout, seed=self.config.seed, step=number, sizes=sizes)
        ranges = divide(requests, self.config.ranges) if requests else ()  # an engine samples one after the other
        asked.batches = [self.fleet.ask(own) for own in ranges]
        return asked

    def next_prompts(self, batch: StepBatch) -> list[Prompt]:
        """Return the prompts that a step asks next, all different; none once it has the groups it trains on.

        First come P. Under `signal.max_prompts` one comes for each group that carries no signal, until all do or a
        bound is reached.

        Raises:
            DataError: every group of the step was dropped.
        """
        if not batch.rounds:
            self.asked = self.lookahead.asked.popleft()
        elif drawn := self._draw_missing(batch):
            self.asked = self._ask(self.version, drawn)
        else:
            self._close_batch(batch)
            return []
        batch.ask(self.asked.drawn)
        return [prompt for prompt, _ in self.asked.drawn]

    def _draw_missing(self, batch: StepBatch) -> Sequence[tuple[Prompt, int]]:
        """Draw a prompt for each group that is wanted in place of one without signal."""
        missing = batch.count_missing()
        if missing and batch.is_late():
            self.tracker.event("refill_stopped", step=self.version, missing=missing, why="signal.max_seconds")
            missing = 0
        return self.feed.take(missing, without=batch.drawn, wanted=self.solve_rates.wants) if missing else ()

    def _close_batch(self, batch: StepBatch) -> None:
        """Count the groups that are not trained on, and note what was right in all of them. Raises DataError."""
        if not batch.scored:
            raise DataError(
                "every group of a step was dropped",
                got=f"{len(batch.drawn)} prompts, the first {next(iter(batch.drawn))}",
                remedy="see events.jsonl for the reasons",
            )
        self.ledger.filter(batch.left_out, step=self.version)
        self.solve_rates.observe(batch.scored, batch.drawn)

    def count_answered(self) -> int:
        """Return the groups that engines have answered and nobody has taken yet. Any thread may ask."""
        steps = [*self.lookahead.asked, *([self.asked] if self.asked else [])]
        return sum(batch.answers.qsize() for asked in steps for batch in asked.batches)

    def groups(self, prompts: Sequence[Prompt]) -> Iterator[Group | FailedGroup]:
        """Yield one group a prompt: first the given answers of the method, then sampled groups as engines finish them.

        The group of a prompt that an engine refuses has failed.
        """
        assert self.asked is not None, "prompts were asked"
        _, given = self.offline.divide(prompts, self.asked.number)
        yield from map(self.offline.make_group, given)
        yield from self.asked.take(self.fleet.take)

    def score(self, prompts: Sequence[Prompt], groups: Iterable[Group | FailedGroup]) -> Iterator[list[ScoredGroup]]:
        """Yield the scored groups of one range of prompts after another; see `Config.ranges`.

        Each is in prompt order, on which the last bits of the gradient depend. A failed group is counted as dropped.
        """
        ranges = PromptRanges(divide(prompts, self.config.ranges))
        probabilities: Mapping[str, tuple[CandidateProbabilities, ...]] = {}
        if not self.config.sampled_prompts:  # all groups are given at once, and are scored in one call
            groups = list(groups)
        if self.rewards.asks_candidate_probabilities:  # the learner is asked once, for all groups
            groups = list(groups)
            sampled = [group for group in groups if isinstance(group, Group)]
            closed_set = self.inputs.model.closed_set
            probabilities = compute_candidate_probabilities(prompts, sampled, closed_set, self.learner)
        groups = groups if isinstance(groups, Sequence) else ranges.watch(groups)
        by_id = {prompt.id: prompt for prompt in prompts}
        more = self.asked.has_answer if self.asked else lambda wait_s: False
        for outcome in self.rewards.score(
            by_id, groups, probabilities, more=more, hurry=ranges.lacks_scores, step=self.version
        ):
            if isinstance(outcome, FailedGroup):
                self.ledger.drop(outcome)
            yield from ranges.settle(outcome)

    def learn_ahead(self, step: int, batch: StepBatch) -> None:
        """Begin to learn from the newest range of a step; do nothing where a step is learned whole."""
        if self.config.ranges == 1:
            return
        if len(batch.ranges) == 1:
            self.learner.begin_step(at=step, coefficients=self.steering.coefficients)
        self.learner.learn_range(batch.ranges[-1], last=len(batch.ranges) == self.config.ranges)

    def learn(self, step: int, scored: Sequence[ScoredGroup]) -> StepResult:
        """Take one optimizer step on groups, of which those of earlier ranges may be learned already.

        Raises:
            EngineError: the engines sample from another policy than the learner scores (law 1).
        """
        self.grace.hold()  # from here to the end of `write` the step is finished first
        self.whole = None
        if self.config.ranges == 1:
            result = self.learner.step(scored, at=step, coefficients=self.steering.coefficients)
        else:
            result = self.learner.finish_step()
        if result.updates:
            check_gaps(self.config, step, scored, result.gaps)
            self.steering.observe(result)
            if result.skipped:
                self.tracker.event("updates_skipped", step=step, taken=result.updates, skipped=result.skipped)
        return result

    def skip(self, step: int, batch: StepBatch, result: StepResult) -> None:
        """Count a step that was left out, since its loss or gradient is no finite number; the weights are as before.

        Raises:
            LearnerError: that happened too often in a row. The batch is in the run folder.
        """
        self.skipped_in_a_row += 1
        self.ledger.skip(len(batch.groups))
        self._keep_books(step, batch, skipped=True)
        self.tracker.event("step_skipped", step=step, loss=str(result.loss), grad_norm=str(result.grad_norm))
        if self.skipped_in_a_row > self.config.learner.max_skipped_steps:
            raise LearnerError(
                f"loss or gradient is no finite number, {self.skipped_in_a_row} times in a row",
                got=f"step {step}: loss {result.loss:g}, gradient norm {result.grad_norm:g}; its groups are in "
                f"{self.tracker.keep_batch(step, batch.groups)}",
                remedy="look at its rewards and log-probs. Mend a reward that is at fault and resume=auto; a lower "
                "learner.lr wants a new run",
            )
        self._become_whole()
        self.grace.release()

    def publish(self, version: int) -> None:
        """Name the current weights `version`, and load them into every engine that is asked before the next step."""
        self.version = version
        wanted = self.config.sampled_prompts or self._find_due_sets() or version == self.end
        if wanted or self.served is None:
            self.published.append(Published(version, self.weight_sync.publish(version)))
            self.served = version
            self.probe(version, self._choose_probe_prompts)

    def _choose_probe_prompts(self) -> list[Prompt]:
        """Return as many prompts as there are engines or ranks: dealt out evenly they reach every one."""
        train, config = self.inputs.data.train, self.config
        count = min(len(train), max(len(self.fleet.engines), config.learner.ranks))
        return self.encode([train[index] for index in range(count)])

    def write(self, step: int, batch: StepBatch, result: StepResult, clock: StepClock) -> None:
        """Log the step, and every `tracking.samples_every` steps some of its groups."""
        config, scored = self.config, batch.groups
        self.ledger.trained += len(scored)
        record = make_step_record(
            step,
            batch.scored,
            result,
            clock=clock,
            ledger=self.ledger,
            epoch=self.feed.epochs,
            asked=len(batch.drawn),
            trained=len(scored),
            data_seconds=self.feed.take_wait(),
            solve_rates=self.solve_rates.describe(),
            weights_version=self.served or 0,
            checkpoint_failures=self.checkpoints.failures,
            engine_restarts=self.fleet.restarts,
            config=config,
        )
        self._keep_books(step, batch, skipped=False)
        self.tracker.write(record)
        self.fleet.observe(record.seconds["generate"] / record.step_seconds)
        every = config.tracking.samples_every
        if every and step % every == 0:
            self.tracker.samples(step, scored, config.tracking.samples)
        self.skipped_in_a_row = 0
        self._become_whole()
        self.grace.release()

    def _keep_books(self, step: int, batch: StepBatch, *, skipped: bool) -> None:
        """Write down what became of every group of a step, and which weights were published and loaded."""
        published, self.published = self.published, []
        books = make_step_books(
            step,
            batch,
            skipped=skipped,
            attempt=self.tracker.attempt,
            counts=self.ledger.counts(),
            reasons=self.ledger.take_reasons(),
            pending=[len(one.drawn) for one in self.lookahead.asked],
            published=published,
            loads=self.fleet.take_loads(),
            recalled=self.asked is not None and self.asked.recalled,
        )
        if self.asked:
            self.recordings.keep(self.asked)
        self.tracker.keep_books(books)

    def _become_whole(self) -> None:
        """Note what a checkpoint of the step that has just ended must hold."""
        self.whole, self.ahead = self.describe_state(), list(self.lookahead.asked)
        self.learner.keep()

    def describe_state(self) -> DriverState:
        """Return what the driver must remember to go on from here."""
        return DriverState(
            step=self.version,
            config=self.config,
            stream=asdict(self.feed.state()),
            counts=self.ledger.counts(),
            control={"steering": self.steering.state(), "solve_rates": self.solve_rates.state()},
        )

    def evaluate(self) -> None:
        """Evaluate the current weights on every set: first, last and every `evaluation.every` steps."""
        if sets := self._find_due_sets():
            self.tracker.evaluation(self.version, *self.evaluator.measure_sets(sets))

    def _find_due_sets(self) -> Sequence[EvaluationSet]:
        """Return the sets that the current weights are to be evaluated on, and were not yet; none between times."""
        version, every = self.version, self.config.evaluation.every
        due = version in (0, self.end) or (every and version % every == 0)
        return self.inputs.sets if due and version not in self.tracker.history.evaluations else ()

    @property
    def evaluator(self) -> Evaluator:
        """The evaluator of the weights that engines and learner hold."""
        return Evaluator(
            config=self.config,
            fleet=self.fleet,
            learner=self.learner,
            closed_set=self.inputs.model.closed_set,
            encode=self.encode,
        )

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Make prompts of examples, with vision features where those are cached."""
        return self._use_features([self.inputs.model.encoder.encode(example) for example in examples])

    def _use_features(self, prompts: list[Prompt]) -> list[Prompt]:
        return self.vision_cache.with_features(prompts) if self.vision_cache else prompts

    def describe_start(self) -> DriverState:
        """Return where a run begins, as its checkpoints would say it."""
        state = self.describe_state()
        return replace(state, control={**state.control, "ahead": []})

    def save(self) -> None:
        """Write a checkpoint when one is due, at the end, and of the best weights so far."""
        self.grace.hold()
        self._save(due=self.version == self.end)
        self.grace.release()

    def save_before_leaving(self) -> None:
        """Write a checkpoint of the last whole step, as a signal ends the run. A failure is an event, and no more."""
        if self.grace.over or self.whole is None or self.checkpoints.newest == self.version:
            return
        try:
            self._save(due=True)
        except Exception as error:  # noqa: BLE001  # ranks may have got the signal too
            self.tracker.event("checkpoint_failed", step=self.version, why=describe_cause(error))

    def _save(self, *, due: bool) -> None:
        self.checkpoints.maybe_save(
            self.version,
            save=self._write_state,
            due=due,
            score=self.tracker.history.find_measure(self.version, self.config.checkpoint.best_by),
        )

    def _write_state(self, place: Place) -> tuple[DriverState, Sequence[WriteReport]]:
        assert self.whole is not None, "nothing is saved within a step"
        ahead = self.lookahead.state(self.ahead, self.fleet.take)
        return replace(self.whole, control={**self.whole.control, "ahead": ahead}), self.learner.save(place)
