"""What is logged of a run: one record a step, the history so far, and a summary at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isnan
from typing import Any

from common.config.schema import Config
from learner.evaluation.measures import HELD_OUT, parse_measure

STAGES = ("generate", "reward", "learn", "publish", "idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step as it is logged. Shares are of 1, times in seconds, lengths in tokens."""

    step: int  # 0-based: step s turns weights s into weights s + 1
    epoch: float
    completion_length: float  # mean tokens, EOS included
    rewards: Mapping[str, float]  # mean of each function, before its weight
    reward: float  # mean weighted sum over sampled completions; of given answers the expected one, by probability
    reward_std: float  # mean over groups of the deviation within a group
    kl: float
    loss: float
    entropy: float
    listed_mass: float  # method exact: probability of all listed answers of a group together; 0 elsewhere
    zero_std_share: float  # of sampled groups: those whose rewards are all equal, which teach nothing
    thinking: Mapping[str, float]  # `share` of completions with a thought, its `consistency`; {} in no-think mode
    grad_norm: float  # before clipping
    lr: float
    logprob_gap_mean: float  # |engine - learner| over sampled tokens; 0 without any
    logprob_gap_max: float
    engine_kl: float  # KL(engine || learner) of a sampled token
    effective_share: float  # effective sample size of the ratios learner to engine, as a share of sampled tokens
    corrected_share: float  # of sampled tokens whose ratio was truncated or masked
    lag: Mapping[
        str, float
    ]  # the same as `0/engine_kl`: by steps between the weights that sampled and those that learn
    gap_counts: Mapping[str, Sequence[int]]  # by that lag, sampled tokens by their gap; see `LagFigures`
    left_out_share: float  # of sampled groups: those that change no weight and were not read; kl to here are of others
    clip_share: float
    truncated_share: float  # of sampled completions: those that ended for length
    weights_version: int  # of the engines after the step: an earlier one where nothing will be asked of them yet
    seconds: Mapping[str, float]  # that the run waited for each of STAGES
    learner_seconds: float  # that ranks learned: beyond `seconds/learn` where they did while engines sampled
    data_seconds: float  # of `seconds/idle`: that the run waited for rows to be read and processed
    step_seconds: float
    completions_per_second: float
    solve_rates: Mapping[str, float]  # `rows` sampled so far; shares of `hard` (< 0.1 right) and `easy` (> 0.9) ones
    asked_share: float  # prompts asked for each group trained on; above 1 where groups without signal were replaced
    dropped: int  # groups of this step
    groups_dispatched: int  # these three over the whole run
    groups_trained: int
    groups_dropped: int
    groups_filtered: int  # of those dropped: all their rewards were equal, and others were asked in their place
    checkpoint_failures: int  # over the whole run, as are restarts
    engine_restarts: int

    def __post_init__(self) -> None:
        if set(self.seconds) != set(STAGES):
            raise ValueError(f"seconds are of {STAGES}, not of {tuple(self.seconds)}")
        if self.groups_trained + self.groups_dropped > self.groups_dispatched:
            raise ValueError(
                f"{self.groups_trained} groups trained + {self.groups_dropped} dropped > {self.groups_dispatched}"
            )

    @property
    def youngest_lag(self) -> int:
        """The fewest steps between weights that sampled and those that learn: 0 where nothing was sampled earlier."""
        return min((int(lag) for lag in self.gap_counts), default=0)

    @property
    def youngest_gap(self) -> float:
        """The largest gap of tokens of that lag; at lag 0 `learner.max_logprob_gap` is its limit."""
        return self.lag.get(f"{self.youngest_lag}/gap_max", self.logprob_gap_max)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the step that each stage took, in the order of STAGES."""
        return {stage: self.seconds[stage] / max(self.step_seconds, 1e-9) for stage in STAGES}

    def row(self) -> dict[str, Any]:
        """Return the record as a row of metrics.jsonl: its numbers, and the counts of histograms."""
        return self.flat() | {f"gap_counts/{lag}": list(counts) for lag, counts in self.gap_counts.items()}

    def flat(self) -> dict[str, float]:
        """Return all numbers: {"step": 3, "rewards/accuracy": 0.5, "share/learn": 0.4, ...}."""
        row: dict[str, float] = {}
        for item in fields(self):
            if item.name == "gap_counts":
                continue
            value = getattr(self, item.name)
            named = isinstance(value, Mapping)
            row |= {f"{item.name}/{key}": value[key] for key in value} if named else {item.name: value}
        return row | {f"share/{stage}": share for stage, share in self.shares.items()}


def list_unmeasured(*, samples: bool, reference: bool, lists: bool) -> frozenset[str]:
    """Return the columns of a record that read 0 because nothing is measured there, and are not shown.

    Args:
        samples: engines sample at least part of what is learnt. Else there are no groups of equal rewards, no log-probs
            of an engine to compare with and no answers cut for length.
        reference: there is a reference policy. Else there is no KL to it.
        lists: every candidate of a row is scored (exact). The one answer of sft has its probability as `reward`.
    """
    of_samples = ("zero_std_share", "logprob_gap_mean", "logprob_gap_max", "truncated_share")
    missing = [*(() if samples else of_samples), *(() if reference else ("kl",)), *(() if lists else ("listed_mass",))]
    return frozenset(missing)


def list_unmeasured_of(config: Config) -> frozenset[str]:
    """Return these columns for a run of `config`."""
    samples, reference = config.sampled_prompts > 0, config.learner.beta > 0
    return list_unmeasured(samples=samples, reference=reference, lists=config.method == "exact")


def name_learnt(*, samples: bool, given: bool) -> str:
    """Return the plural of what a run learns from: "completions", "given answers" or both.

    Args:
        samples: engines sample at least part of it.
        given: data give at least part of it.
    """
    return " and ".join([*(["completions"] if samples else []), *(["given answers"] if given else [])])


@dataclass(slots=True)
class History:
    """The steps and evaluations of a run so far, over all its starts."""

    rewards: list[float] = field(default_factory=list)  # one a step
    accuracies: dict[int, float] = field(default_factory=dict)  # optimizer steps done -> held-out accuracy
    evaluations: dict[int, dict[str, Mapping[str, Any]]] = field(default_factory=dict)  # -> line of each set
    completions: float = 0.0
    seconds: float = 0.0
    max_logprob_gap: float = 0.0

    def add_step(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics.jsonl; null, which stands for NaN in JSON, counts as NaN."""
        self.rewards.append(_read_number(row["reward"]))
        self.seconds += row["step_seconds"]
        self.completions += row["completions_per_second"] * row["step_seconds"]
        gap = _read_number(row["logprob_gap_max"])
        if not (gap <= self.max_logprob_gap or isnan(self.max_logprob_gap)):  # a NaN, once seen, stays
            self.max_logprob_gap = gap

    def add_evaluation(self, step: int, line: Mapping[str, Any]) -> None:
        """Add the measures of one set after `step` optimizer steps; without a name they are of the held-out rows."""
        name = line.get("set", HELD_OUT)
        self.evaluations.setdefault(step, {})[name] = line
        if name == HELD_OUT:
            self.accuracies[step] = line["accuracy"]

    def find_measure(self, step: int, best_by: str) -> float | None:
        """Return a measure after `step` steps, as `checkpoint.best_by` names it; None if it was not measured then."""
        name, measure = parse_measure(best_by)
        return self.evaluations.get(step, {}).get(name, {}).get(measure)

    def list_measures(self, best_by: str) -> list[float]:
        """Return a measure at every evaluation so far, by step; times at which it was not measured are left out."""
        measured = (self.find_measure(step, best_by) for step in sorted(self.evaluations))
        return [value for value in measured if value is not None]

    def summarize(self, **of_end: Any) -> Summary:
        """Return the summary of a run of this history; `of_end` are the fields that it does not know."""
        return Summary(
            accuracy_before=self.before,
            accuracy_after=self.now if len(self.accuracies) > 1 else None,
            accuracy_step=self.last_step,
            accuracy_best=self.best[1] if self.best else None,
            completions_per_second=self.completions_per_second,
            max_logprob_gap=self.max_logprob_gap,
            **of_end,
        )

    @property
    def completions_per_second(self) -> float:
        return self.completions / self.seconds if self.seconds else 0.0

    @property
    def before(self) -> float | None:
        return next(iter(self.accuracies.values()), None)

    @property
    def now(self) -> float | None:
        return next(reversed(self.accuracies.values()), None)

    @property
    def last_step(self) -> int | None:
        """The optimizer steps done at the last evaluation."""
        return next(reversed(self.accuracies), None)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and accuracy of the best evaluation, the first of equals."""
        return max(self.accuracies.items(), key=lambda item: item[1]) if self.accuracies else None


def _read_number(value: float | None) -> float:
    return float("nan") if value is None else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What ended a run that did not finish, as `summary.json` and the event `end` have it."""

    ring: str  # "engine", "reward", "learner", "node" or "driver"; "user" for a signal
    actor: str  # "LearnerRank (pid 17)"
    node: str
    error: str

    def __str__(self) -> str:
        return f"ring {self.ring}, actor {self.actor}, node {self.node}: {self.error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`summary.json`: how the run ended."""

    outcome: str  # "finished", "interrupted", "failed", or "lost" where the driver could not write this itself
    cause: Cause | None = None  # of any outcome but "finished"
    stopped_early: str | None  # why a finished run did not take all its steps; None: it did
    steps: int  # optimizer steps done, over every start of the run
    accuracy_before: float | None  # held-out, greedy; None: not evaluated
    accuracy_after: float | None
    accuracy_step: int | None  # after how many steps that was
    accuracy_best: float | None
    wall_seconds: float  # of this start
    startup_seconds: float
    completions_per_second: float
    max_logprob_gap: float
    weights_version: int
    checkpoint_failures: int
    log_failures: int
    warnings: tuple[str, ...]  # signs of collapse that were told, over every start
    bottleneck: Mapping[str, Any] | None = None  # `part`, `share`, `what`, `advice`; None: too few steps
    config_hash: str
    git_sha: str
