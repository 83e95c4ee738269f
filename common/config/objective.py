"""The section `objective`: which member of the GRPO family learns from sampled completions, and presets of papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from common.config.sections import NonNegative, Positive, Scale, Section

AboveZero = Scale
NotNegative = Annotated[float, Field(ge=0, le=1e30)]

Preset = Literal[
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "gspo_token",
    "luspo",
    "gmpo",
    "cispo",
    "sapo",
    "rloo",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "lite_ppo",
    "maxrl",
    "quick",
]


class ObjectiveConfig(Section):
    """How the policy learns from sampled completions. The defaults are CLS-RL's GRPO."""

    preset: Preset | None = None
    """Settings of a paper by its name, or quick, the fastest on the digits. Keys given beside it hold before them.
    `--print-config` shows what it sets."""
    loss: Literal["grpo", "gspo", "gspo_token", "gmpo", "cispo", "sapo", "rloo"] = "grpo"
    """Surrogate of the policy gradient. grpo: clipped ratio of each token. gspo, gspo_token, gmpo: of the mean over a
    completion. rloo: of the whole completion. cispo: weighted log-prob. sapo: soft gate."""
    advantage: Literal["group", "batch", "none", "leave_one_out", "mean", "whitened", "whitened_baseline"] = "group"
    """What a reward is compared with. group: mean and deviation of its group. batch: mean of its group, deviation of
    the step. none: mean alone. leave_one_out: mean of the others. mean: the mean, as a share of it. whitened: mean and
    deviation of all tokens of the step, with whitened_baseline after the group's mean."""
    aggregation: Literal["sequence", "token", "constant", "sequence_sum"] = "sequence"
    """How tokens become one loss. sequence: mean over the tokens of each completion, then over completions. token: mean
    over all tokens of the step. constant: sum over completions times rollout.max_completion_tokens. sequence_sum: sum
    over the tokens of a completion, mean over completions."""
    clip_low: NotNegative = 0.2
    """How far the ratio to the policy that sampled may fall below 1 and still teach. 0 is no bound for cispo."""
    clip_high: AboveZero = 0.2
    """How far that ratio may rise above 1 and still teach."""
    dual_clip: Annotated[float, Field(gt=1, le=1e30)] | None = None
    """Bound on the ratio of completions worse than their group, as 3; null has none."""
    gate_high: AboveZero = 1.0
    """Temperature of sapo's gate for completions better than their group."""
    gate_low: AboveZero = 1.05
    """Temperature of sapo's gate for completions worse than their group."""
    updates: Positive = 1
    """Passes over the completions of a step, each an optimizer step or more. The ratio and its clip act from the second
    on. Raise it where sampling is dear."""
    minibatches: Positive = 1
    """Parts into which the prompts of a step are divided, each an optimizer step of its own."""
    kl: Literal["k1", "k2", "k3", "k3_plus"] = "k3"
    """Estimator of the KL to the reference, weighted with `learner.beta`. k3_plus: value of k3, gradient of k2."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where that KL counts: as a term of the loss, or taken off the reward of each completion before it is compared."""
    kl_corrected: bool = False
    """Weigh the KL of a token with its ratio: unbiased where the policy is not the one that sampled."""
    kl_target: AboveZero | None = None
    """KL that `learner.beta` is steered towards, from step to step; null leaves it as it is."""
    kl_horizon: Positive = 10_000
    """Completions over which that steering acts. Raise it for a slower one."""
    correction: Literal["auto", "none", "truncate", "mask", "bypass"] = "auto"
    """What is done about tokens whose log-prob in the engine was another. truncate: weigh each with its probability
    ratio, at most `correction_high` (TIS). mask: leave out those outside the band (IcePop, MIS). bypass: take the
    clipped ratio to the engine itself. auto: truncate in bfloat16 and for older weights, else none."""
    correction_level: Literal["token", "sequence", "mean"] = "token"
    """Of what that ratio is taken: each token, the whole completion, or the mean over its tokens."""
    correction_low: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least ratio that mask leaves in; at most 1, the ratio of engines that agree."""
    correction_high: Annotated[float, Field(ge=1, le=1e30)] = 2.0
    """Largest ratio that mask leaves in, and that truncate gives; at least 1."""
    sequence_mask: AboveZero | None = None
    """Leave out completions worse than their group whose mean log-prob fell by more than this since they were sampled;
    null leaves out none."""
    entropy_bonus: NotNegative = 0.0
    """Weight of the entropy, which is subtracted from the loss. Raise it where answers become all alike."""
    entropy_floor: AboveZero | None = None
    """Entropy of a token, in nats, below which `entropy_bonus` acts; null: always."""
    overlong_buffer: NonNegative = 0
    """Tokens before rollout.max_completion_tokens in which the reward falls by up to 1, in a straight line; 0: none."""
    mask_truncated: bool = False
    """Leave out completions that were cut at rollout.max_completion_tokens."""
    dead_groups: Literal["auto", "keep", "drop"] = "auto"
    """What is done about groups whose advantages are all 0. auto: leave them out where they change no weight, as
    without a KL. keep: read all, so that every figure is of all. drop: leave out all, with their KL and entropy."""


# What each paper sets. Sources stand with the functions in `learner.objective`.
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"advantage": "none", "aggregation": "constant"},
    "dapo": {"clip_high": 0.28, "aggregation": "token", "mask_truncated": True},
    "gspo": {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
    "gspo_token": {"loss": "gspo_token", "clip_low": 3e-4, "clip_high": 4e-4},
    "luspo": {"loss": "gspo", "aggregation": "sequence_sum", "clip_low": 3e-4, "clip_high": 4e-4},
    "gmpo": {"loss": "gmpo", "clip_low": 0.4, "clip_high": 0.4},
    "cispo": {"loss": "cispo", "aggregation": "token", "clip_low": 0.0, "clip_high": 4.0},
    "sapo": {"loss": "sapo"},
    "rloo": {"loss": "rloo", "advantage": "leave_one_out", "kl": "k1", "kl_in": "reward"},
    "reinforce_pp": {"advantage": "whitened", "aggregation": "token"},
    "reinforce_pp_baseline": {"advantage": "whitened_baseline", "aggregation": "token"},
    "lite_ppo": {"advantage": "batch", "aggregation": "token"},
    "maxrl": {"advantage": "mean"},
    "quick": {"advantage": "mean", "updates": 2},  # of no paper: what learnt the digits fastest
}


def has_ratio_of_1(objective: ObjectiveConfig) -> bool:
    """Say whether every ratio is 1 throughout, with `auto` decided: one update a step, compared with itself."""
    return objective.updates == objective.minibatches == 1 and objective.correction != "bypass"


# Keys, when they have no effect, and the key that says so.
_IDLE: list[tuple[tuple[str, ...], Callable[[ObjectiveConfig], bool], str]] = [
    (("gate_low", "gate_high"), lambda own: own.loss != "sapo", "loss"),
    (("clip_low", "clip_high"), lambda own: own.loss == "sapo", "loss"),
    (("dual_clip",), lambda own: own.loss in ("gmpo", "cispo", "sapo"), "loss"),
    (("clip_low", "clip_high", "dual_clip", "gate_low", "gate_high"), has_ratio_of_1, "updates"),
    (("kl_corrected",), lambda own: own.kl_in == "reward", "kl_in"),
    (("kl_horizon",), lambda own: own.kl_target is None, "kl_target"),
    (("entropy_floor",), lambda own: not own.entropy_bonus, "entropy_bonus"),
    (
        ("correction_level", "correction_low", "correction_high"),
        lambda own: own.correction in ("none", "bypass"),
        "correction",
    ),
    (("correction_low",), lambda own: own.correction == "truncate", "correction"),
]
_NEED_BETA = ("kl", "kl_in", "kl_corrected", "kl_target")


def list_changed(objective: ObjectiveConfig) -> set[str]:
    """Return the keys that are neither at their default nor as the preset has them."""
    default, preset = ObjectiveConfig(), PRESETS.get(objective.preset or "", {})
    values = {key: getattr(objective, key) for key in ObjectiveConfig.model_fields if key != "preset"}
    return {key for key, value in values.items() if value not in (getattr(default, key), preset.get(key))}


def reaches_dead_groups(objective: ObjectiveConfig, *, beta: float) -> bool:
    """Say whether a group without advantages has a gradient all the same: that of the KL, or of the entropy."""
    return (beta > 0 and objective.kl_in == "loss") or objective.entropy_bonus > 0


def _explain_dead_groups(objective: ObjectiveConfig, *, beta: float) -> str | None:
    """Return the setting under which `dead_groups` does what auto does; None where it differs."""
    reached = reaches_dead_groups(objective, beta=beta)
    if objective.dead_groups == "drop" and not reached:
        return f"objective.kl_in = {objective.kl_in}" if beta else "learner.beta = 0"
    if objective.dead_groups == "keep" and reached and not objective.mask_truncated:
        bonus = objective.entropy_bonus
        return f"objective.entropy_bonus = {bonus:g}" if bonus else f"learner.beta = {beta:g}"
    return None


def explain_idle(objective: ObjectiveConfig, *, beta: float) -> Iterator[tuple[str, str]]:
    """Yield the keys that were changed and have no effect, each with the setting that takes it: `loss = grpo`.

    Args:
        objective: with `auto` decided.
        beta: weight of the KL.
    """
    changed = list_changed(objective)
    for keys, idle, cause in _IDLE:
        for key in keys:
            if key in changed and idle(objective):
                yield key, f"objective.{cause} = {getattr(objective, cause)}"
    if "dead_groups" in changed and (reason := _explain_dead_groups(objective, beta=beta)):
        yield "dead_groups", reason
    for key in _NEED_BETA:
        if key in changed and not beta:
            yield key, "learner.beta = 0"
