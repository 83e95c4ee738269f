"""What to change where a run shows a sign of collapse: settings as they are typed, from those of the run."""

from __future__ import annotations

from common.config.schema import Config
from common.config.sections import LARGEST_INT, MOST_ANSWERS


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
