"""Law 1 while a run runs: a probe on a few prompts after some pushes of weights, and every step's tokens.

The first probe finds what the two read or compute differently. The second, on the same prompts, finds what an engine
kept of the weights before: parts that were not loaded, cached keys and values, image features. An engine that joins
later is probed at the next push. The figures of every step find what goes wrong later. Under `rollout.max_lag` they
cannot, since another policy has sampled the tokens: every 50th push is probed there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np

from common.config.schema import Config
from common.errors import EngineError
from common.models.families import Family
from common.types import FailedGroup, GroupGap, Prompt, Sampling, ScoredGroup
from learner.trainer.group import LearnerGroup
from rollout.fleet.fleet import RolloutFleet
from rollout.requests import request

# Measured on random models of ten families: up to 5e-6 and 0.06, and 0.38 where bfloat16 turns a router (Aria). Of two
# equal logits at the edge of top-k, each side may keep its own: a gap of ln 2.
LIMITS = {"float32": 1e-3, "bfloat16": 0.75}
PUSHES, COMPLETIONS, TOKENS = 2, 2, 8
EVERY = 50  # pushes, of a run whose tokens are of older weights
TRIES = 3  # probes that an engine may miss: it was at work on something else

# Of a step. In bfloat16 the largest gap of many tokens has a long tail: the mean says more. README.md has what was
# measured.
LARGEST = {"float32": 1e-3, "bfloat16": 5.0}
MEAN = {"float32": 1e-3, "bfloat16": 0.2}


class ParityProbe:
    """Compares log-probs after the first two pushes, and later where that is due; other calls return at once."""

    def __init__(
        self,
        fleet: RolloutFleet,
        learner: LearnerGroup,
        config: Config,
        *,
        family: Family,
        on_event: Callable[..., None],
    ) -> None:
        self._fleet, self._learner, self._config = fleet, learner, config
        self._family, self._on_event = family, on_event
        self._pushes = 0
        self._missed: dict[str, int] = {}  # probes since it joined, by engine; TRIES once it took part in one

    def __call__(self, version: int, prompts: Callable[[], Sequence[Prompt]]) -> None:
        """Raise EngineError when engine and learner disagree about any token.

        Args:
            prompts: returns the same prompts each time, at least one for every engine and rank.
        """
        self._pushes += 1
        if not self._is_due():
            return
        gap, dtype = self._measure_gap(prompts()), self._config.model.dtype
        limit = self._config.learner.probe_gap or _scale(LIMITS[dtype], self._config)
        self._on_event("probe", version=version, gap=float(f"{gap:.3g}"))
        if not gap <= limit:
            raise EngineError(
                f"engine and learner give tokens different log-probs, at weights version {version}",
                got=f"{self._config.model.path} in {dtype}: a gap of {gap:.3g}, where learner.probe_gap is {limit:g}",
                remedy=self._describe_cause(),
            )

    def _is_due(self) -> bool:
        """Say whether the newest push is probed."""
        if self._pushes <= PUSHES or (self._config.rollout.max_lag and self._pushes % EVERY == 0):
            return True
        return any(self._missed.get(engine, 0) < TRIES for engine in self._fleet.engines)

    def _measure_gap(self, asked: Sequence[Prompt]) -> float:
        """Sample from every prompt and return the largest difference of a token's log-prob, in nats."""
        rollout = self._config.rollout
        sampling = Sampling(
            n=COMPLETIONS,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_tokens=min(TOKENS, rollout.max_completion_tokens),
        )
        prompts = {prompt.id: prompt for prompt in asked}
        requests = [request(prompt, sampling, seed=number) for number, prompt in enumerate(prompts.values())]
        scored = []
        for group in self._fleet.generate(requests):
            if isinstance(group, FailedGroup):
                raise EngineError(
                    f"the engine refuses {group.prompt_id}, a prompt that preflight let pass",
                    got=group.reason,
                    remedy="engine and learner read the model's files differently: report it with the model's name",
                )
            zeros = (0.0,) * COMPLETIONS
            scored.append(ScoredGroup(prompt=prompts[group.prompt_id], group=group, rewards_by_name={}, rewards=zeros))
        self._missed = {engine: self._missed.get(engine, 0) + 1 for engine in self._fleet.engines}
        self._missed |= {str(one.group.engine_id): TRIES for one in scored}
        learner = list(chain.from_iterable(chain.from_iterable(self._learner.logprobs(scored))))
        engine = list(chain.from_iterable(one.logprobs for group in scored for one in group.group.completions))
        return float(np.abs(np.subtract(learner, engine)).max())  # NaN if any is

    def _describe_cause(self) -> str:
        """Say what the likely cause of a gap is, by the push after which it was found."""
        rounding = "; if the gap is small it may be rounding: raise learner.probe_gap"
        if self._pushes > 1:
            cause = "they agreed before this push: the engine kept weights or caches of the version before"
        else:
            cause = self._family.suspect
        return f"likely: {cause}{rounding if self._config.model.dtype == 'bfloat16' else ''}"


def check_gaps(config: Config, step: int, scored: Sequence[ScoredGroup], gaps: Mapping[str, GroupGap]) -> None:
    """Refuse a step whose tokens were sampled from another policy than the learner scores (law 1).

    The largest gap of any token has a limit, and the mean over the tokens that one engine sampled. Tokens that were
    sampled with older weights are left out: theirs is another policy, which is corrected for.

    Args:
        gaps: of the sampled groups among `scored`, by prompt id.

    Raises:
        EngineError: naming engine and group, and where to look.
    """
    limits, dtype = find_gap_limits(config), config.model.dtype
    largest, mean = limits["max"], limits["mean"]
    engines: dict[str, list[str]] = {}  # the prompts whose answers each sampled
    for one in scored:
        if one.prompt.id in gaps and one.group.newest_version >= step:
            engines.setdefault(str(one.group.engine_id), []).append(one.prompt.id)

    for engine, prompts in engines.items():
        own = [gaps[prompt] for prompt in prompts]
        worst = max(prompts, key=lambda prompt: _nan_first(gaps[prompt].largest))
        found, tokens = sum(gap.total for gap in own), sum(gap.tokens for gap in own)
        if not gaps[worst].largest <= largest:
            said = f"a log-prob gap of {gaps[worst].largest:.3g}, learner.max_logprob_gap = {largest:g}"
        elif not found / tokens <= mean:
            said = f"a log-prob gap of {found / tokens:.3g} in the mean of {tokens} tokens, "
            said += f"learner.mean_logprob_gap = {mean:g}; the worst is {gaps[worst].largest:.3g}"
        else:
            continue
        raise EngineError(
            f"engine and learner disagree about the policy at step {step}",
            got=f"{said}, in the group of {worst}, sampled by {engine}, in {dtype}",
            remedy="it serves stale or damaged weights, or samples under other settings: find out, then resume=auto "
            "goes on from the last checkpoint" + _suggest_limit(dtype),
        )


def find_gap_limits(config: Config) -> dict[str, float]:
    """Return the limits of the largest gap of a token, `max`, and of an engine's `mean`, for tokens without lag."""
    learner, dtype = config.learner, config.model.dtype
    largest = _scale(LARGEST[dtype], config) if learner.max_logprob_gap is None else learner.max_logprob_gap
    return {"max": largest, "mean": learner.mean_logprob_gap or (math.inf if math.isinf(largest) else MEAN[dtype])}


def _scale(limit: float, config: Config) -> float:
    """Return the limit of a gap at the temperature of a run: one below 1 divides logits and their rounding."""
    return limit / min(1.0, config.rollout.temperature)


def _nan_first(gap: float) -> float:
    return math.inf if math.isnan(gap) else gap


def _suggest_limit(dtype: str) -> str:
    if dtype == "float32":
        return ""
    return "; if it is rounding, raise the limit named (null takes the one of bfloat16)"
