"""What to change where a run collapses or is slow: settings as they are typed, from those of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from common.config.schema import Config
from common.config.sections import LARGEST_INT, MOST_ANSWERS
from common.errors import RollcallError


def advise(sign: str, config: Config) -> str:
    """Return what to do about a sign, and settings for a new run: `... Try learner.lr=2.5e-04 or learner.beta=0.08`."""
    hint, settings = _ADVICE[sign], list_settings(sign, config)
    return f"{hint}. Try {' or '.join(settings)}" if settings else hint


def list_settings(sign: str, config: Config) -> list[str]:
    """Return settings that work against a sign, the likeliest first."""
    slower, closer = [f"learner.lr={config.learner.lr / 2:g}"], _stay_closer(config)
    objective, rollout = config.objective, config.rollout
    bonus = [f"objective.entropy_bonus={2 * objective.entropy_bonus or 0.01:g}"]
    if sign == "zero_std_groups":
        more = (
            [] if config.signal.max_group_size else _raise("rollout.group_size", rollout.group_size, most=MOST_ANSWERS)
        )
        return [*_ask_further(config), *more, *_start_warmer(config)]
    if sign == "entropy_collapse":
        return [*bonus, *closer, *slower]
    if sign == "entropy_growth":
        lowered = [f"objective.entropy_bonus={objective.entropy_bonus / 2:g}"] if objective.entropy_bonus else []
        return [*lowered, *closer, *slower]
    if sign == "length_growth":
        room, buffer = rollout.max_completion_tokens, rollout.max_completion_tokens // 4
        punished = [f"objective.overlong_buffer={buffer}"] if _takes_buffer(config) else []
        return [*_raise("rollout.max_completion_tokens", room, most=LARGEST_INT), *punished]
    if sign in ("length_collapse", "invalid_answers"):
        return [*_reward_form(config), *_sample_more(config), *closer, *slower]
    return [*slower, *closer]


_ADVICE = {
    "zero_std_groups": "Where nearly all are right, take harder rows or end the run (evaluation.stop_after); where "
    "nearly all are wrong, draw more completions or pay for a part of what is wanted (reward.functions)",
    "entropy_collapse": "The policy no longer explores, and learns little more",
    "entropy_growth": "The policy turns into noise",
    "kl_growth": "The policy leaves the reference without earning more",
    "length_growth": "Completions run into rollout.max_completion_tokens",
    "length_collapse": "Look at samples.jsonl: perhaps reward.functions pay for saying nothing",
    "reward_collapse": "The last checkpoint by checkpoint.best_by has the better weights. The steps are too long",
    "invalid_answers": "Look at samples.jsonl: perhaps reward.functions pay for something else than answers",
}


def _raise(key: str, value: int, *, most: int) -> list[str]:
    """Return twice the value, within its bound; nothing for one that is at the bound."""
    return [f"{key}={min(2 * value, most)}"] if value < most else []


def _stay_closer(config: Config) -> list[str]:
    """Return what keeps the policy nearer to its reference; nothing for sft, which has none."""
    if config.method == "sft":
        return []
    if config.objective.kl_target is not None:
        return [f"objective.kl_target={config.objective.kl_target / 2:g}"]
    return [f"learner.beta={2 * config.learner.beta or 0.04:g}"]


def _ask_further(config: Config) -> list[str]:
    """Return what asks other prompts in place of those that teach nothing, and passes over solved rows."""
    further = ["signal.max_prompts=3"] if config.signal.max_prompts == 1 else []
    return [*further, *([] if config.signal.skip_solved else ["signal.skip_solved=2"])]


def _start_warmer(config: Config) -> list[str]:
    """Return a higher temperature, where answers are alike since it is low."""
    return ["rollout.temperature=1"] if config.rollout.temperature < 1 else []


def _takes_buffer(config: Config) -> bool:
    """Whether long completions can be punished, and are not yet."""
    fits = config.rollout.max_completion_tokens >= 4 and config.reward.normalise == "sum"
    return fits and not config.objective.overlong_buffer


def _reward_form(config: Config) -> list[str]:
    """Return rewards that pay for the form too, in a mode that has one."""
    functions = config.reward.functions
    if config.data.mode == "no_think" or functions.get("format") or config.method == "sft":
        return []
    pairs = ", ".join(f"{name}: {weight:g}" for name, weight in {**functions, "format": 1.0}.items())
    return [f"reward.functions={{{pairs}}}"]


def _sample_more(config: Config) -> list[str]:
    """Return a share of sampled prompts for exact, whose listed answers leave free ones to themselves."""
    if config.method != "exact" or config.exact.sampled_share or config.rollout.prompts_per_step < 4:
        return []
    return ["exact.sampled_share=0.25"]


# -- speed ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Knob:
    """A setting that makes a run faster."""

    saves: float  # share of the time of a step, about
    key: str
    value: Any
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timing:
    """What is known of a run's speed."""

    shares: Mapping[str, float]  # of each part, in the time of a step
    config: Config
    spare: Mapping[str, float] | None  # CPUs and GPUs that nobody has reserved; None: the cluster may grow

    def double(self, key: str, now: int, hint: str, **needs: float) -> Iterator[_Knob]:
        """Yield twice as many processes, where the cluster has what they need: half of their part's time is saved."""
        spare = self.spare
        if spare is None or all(spare.get(name, 0.0) >= now * amount for name, amount in needs.items()):
            yield _Knob(0.5 * self.shares[_PARTS_OF_KEYS[key]], key, 2 * now, hint)

    def overlap(self) -> Iterator[_Knob]:
        """Yield what lets engines and learner work at the same time: the lesser of both is saved."""
        sampled, others = self.shares["engine"], self.shares["learner"] + self.shares["driver"]
        if self.config.rollout.max_lag:
            return
        hint = "Let engines sample the next step while the learner learns this one"
        if self.config.sampled_prompts:
            yield _Knob(min(sampled, others), "rollout.max_lag", 1, hint)
        hint = "Let the learner begin with the first groups while others are sampled"
        if self.config.learner.ranges == 1 and self.config.learned_whole is None:
            yield _Knob(0.75 * min(sampled, self.shares["learner"]), "learner.ranges", 4, hint)


def advise_on_speed(
    part: str, shares: Mapping[str, float], config: Config, spare: Mapping[str, float] | None = None
) -> str:
    """Return the one setting that is likely to save most where `part` is the bottleneck: `... Try rollout.engines=2`.

    Args:
        shares: of each part, in the time of a step.
        spare: CPUs and GPUs, by Ray's names, that no part of the run has reserved; None: the cluster may grow.
    """
    timing = _Timing(shares=shares, config=config, spare=spare)
    knobs = [one for one in _KNOBS[part](timing) if _is_accepted(config, one)]
    if not knobs:
        return "No setting changes that"
    best = max(knobs, key=lambda one: one.saves)
    return f"{best.hint}. Try {best.key}={best.value}"


def _speed_up_engines(timing: _Timing) -> Iterator[_Knob]:
    rollout, hint = timing.config.rollout, "Let more engines sample"
    needs = {"CPU": rollout.cpus_per_engine, "GPU": rollout.gpus_per_engine}
    yield from timing.double("rollout.engines", rollout.max_engines, hint, **needs)
    yield from timing.overlap()


def _speed_up_rewards(timing: _Timing) -> Iterator[_Knob]:
    reward, hint = timing.config.reward, "Make the functions faster, or let more processes score"
    yield from timing.double("reward.workers", reward.workers, hint, CPU=reward.cpus_per_worker)


def _speed_up_learner(timing: _Timing) -> Iterator[_Knob]:
    learner, share = timing.config.learner, timing.shares["learner"]
    needs = {"CPU": learner.cpus_per_rank, "GPU": learner.gpus_per_rank}
    yield from timing.double("learner.ranks", learner.ranks, "Let more ranks learn", **needs)
    yield from timing.overlap()
    hint = "Let a pack hold more groups, as long as memory lasts"
    yield _Knob(0.1 * share, "learner.tokens_per_pack", 2 * learner.tokens_per_pack, hint)


def _speed_up_driver(timing: _Timing) -> Iterator[_Knob]:
    prompts = timing.config.rollout.prompts_per_step
    hint = "Let a step hold more prompts: some of its work is done once a step"
    yield _Knob(0.25 * timing.shares["driver"], "rollout.prompts_per_step", 2 * prompts, hint)
    yield from timing.overlap()


def _speed_up_data(timing: _Timing) -> Iterator[_Knob]:
    cache, hint = timing.config.data.cache_mb, "Put data.path on a local disk, and let more of it stay in memory"
    yield _Knob(0.5 * timing.shares["data"], "data.cache_mb", 2 * cache or 512, hint)


def _speed_up_weights(timing: _Timing) -> Iterator[_Knob]:
    config, share = timing.config, timing.shares["weights"]
    if config.cluster.device == "cuda":
        hint = "Let engines get the weights from GPU to GPU"
        yield _Knob(0.8 * share, "weights.transport", "nccl", hint)
    if not config.rollout.max_lag and config.sampled_prompts:
        yield _Knob(0.7 * share, "rollout.max_lag", 1, "Let engines load them while the learner goes on")
    hint = "Let fewer and larger objects hold them"
    yield _Knob(0.1 * share, "weights.bucket_mb", 2 * config.weights.bucket_mb, hint)


_PARTS_OF_KEYS = {"rollout.engines": "engine", "reward.workers": "reward", "learner.ranks": "learner"}
_KNOBS = {
    "engine": _speed_up_engines,
    "reward": _speed_up_rewards,
    "learner": _speed_up_learner,
    "driver": _speed_up_driver,
    "data": _speed_up_data,
    "weights": _speed_up_weights,
}


def _is_accepted(config: Config, knob: _Knob) -> bool:
    """Return whether a run of this configuration would take the setting."""
    section, _, name = knob.key.partition(".")
    raw = config.model_dump()
    if raw[section][name] == knob.value:
        return False
    raw[section][name] = knob.value
    try:
        Config.model_validate(raw)
    except (ValidationError, RollcallError):
        return False
    return True
