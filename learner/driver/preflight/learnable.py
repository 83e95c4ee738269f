"""Settings under which little or nothing can be learned: what is accepted, and worth a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from common.config.objective import has_ratio_of_1
from common.config.schema import Config, flatten
from rollout.rewards import REWARDS
from rollout.rewards.loading import find_functions_with

COLD, NARROW = 0.1, 0.1  # temperature and top-p under which the answers of a group hardly differ
HOT_KL = 10.0  # times the KL in nats, against advantages of about 1
LEAST_STEP = 1e-10  # a weight of 0.02 has the next float32 at 2e-9


def warn_of_nothing_to_learn(config: Config, *, say: Callable[[str], None]) -> None:
    """Say what keeps the answers of a group, their rewards or the weights as they are."""
    for doubt in _list_doubts(config):
        say(f"warning: {doubt}")


def warn_of_few_rows(config: Config, *, rows: int, say: Callable[[str], None]) -> None:
    """Say which settings of `signal` want more rows, or more visits of each, than a run of `config.steps` has."""
    signal, visits = config.signal, config.steps * config.rollout.prompts_per_step / rows
    if config.most_prompts > rows:
        say(
            f"warning: signal.max_prompts = {signal.max_prompts:g}: a step asks no row twice, so at most the {rows} "
            f"rows of the data instead of {config.most_prompts}"
        )
    later = {"curriculum": signal.curriculum != "none", "max_group_size": signal.max_group_size is not None}
    for key in [key for key, given in later.items() if given and visits <= 1]:
        say(f"warning: signal.{key} = {getattr(signal, key)} goes by earlier visits, and this run asks no row twice")
    if signal.skip_solved and visits <= signal.skip_solved:
        say(
            f"warning: signal.skip_solved = {signal.skip_solved} acts after so many visits of a row, and this run has "
            f"{visits:.1f} of each"
        )


def _list_doubts(config: Config) -> Iterator[str]:
    """Yield a line for each doubt, which names its keys as `section.key = value`."""
    learner, loss = config.learner, config.objective.loss
    if idle := list(_list_idle(config)):
        yield f"without effect under the other settings: {', '.join(idle)}"
    if config.sampled_prompts:
        yield from _list_sampling_doubts(config)
        settled = config.objective.model_copy(update={"correction": config.correction_at(lag=0)})
        if loss in ("gspo", "gspo_token", "gmpo", "cispo", "sapo") and has_ratio_of_1(settled):
            yield (
                f"objective.loss = {loss} with objective.updates = 1: its ratios are 1 throughout, so it learns as "
                "grpo does; raise objective.updates"
            )
    if learner.ranges > 1:
        yield from _list_range_doubts(config)
    if learner.lr < LEAST_STEP:
        yield f"learner.lr = {learner.lr:g} is too small to change a weight in float32"
    if learner.beta > HOT_KL:
        yield f"learner.beta = {learner.beta:g} lets the KL outweigh every reward: the model stays as it is"


def _list_range_doubts(config: Config) -> Iterator[str]:
    """Yield why a step is not learned in as many ranges as it should be, or why that saves no time."""
    said = f"learner.ranges = {config.learner.ranges}"
    if config.learned_whole:
        yield f"{said} with {config.learned_whole}: a step is learned once all its groups are there"
    elif config.ranges < config.learner.ranges:
        yield (
            f"{said} with rollout.prompts_per_step = {config.rollout.prompts_per_step}: a step is learned in "
            f"{config.ranges}, of one group a rank"
        )
    elif asking := find_functions_with(config.reward.functions, "candidate_probabilities"):
        yield f"{said} saves no time with reward {asking[0]}: it asks the learner once, about all groups of a step"


def _list_idle(config: Config) -> Iterator[str]:
    """Yield the keys that were changed from their defaults, and that nothing reads under the other settings."""
    given, defaults = flatten(config), flatten(Config())
    idle = set[str]()
    if not config.lora.rank:
        idle |= {key for key in given if key.startswith("lora.")}
    if config.method != "exact":
        idle |= {key for key in given if key.startswith("exact.")}
    if all(name in REWARDS for name in config.reward.functions):  # others may take them among their columns
        readers = {
            "reward.length_target": "length",
            "reward.repetition_ngram": "repetition",
            "data.taxonomy": "taxonomy",
        }
        idle |= {key for key, reward in readers.items() if reward not in config.reward.functions}
    yield from (f"{key} = {given[key]}" for key in given if key in idle and given[key] != defaults[key])


def _list_sampling_doubts(config: Config) -> Iterator[str]:
    """Yield those of answers that engines sample, and of what they earn."""
    rollout, reward = config.rollout, config.reward
    alike = "the answers of a group are alike, so their rewards are, and nothing is learned from them"
    if rollout.top_k == 1:
        yield f"rollout.top_k = 1 samples the likeliest token alone: {alike}"
    if rollout.top_p < NARROW:
        yield f"rollout.top_p = {rollout.top_p:g} leaves hardly more than the likeliest token: {alike}"
    if rollout.temperature < COLD:
        yield f"rollout.temperature = {rollout.temperature:g} is close to greedy: {alike}"
    weighted = {name for name, weight in reward.functions.items() if weight}
    if weighted == {"format"} and config.data.mode == "no_think":
        yield "reward format alone earns nearly every answer the same with data.mode = no_think: add accuracy"
    if "repetition" in weighted and reward.repetition_ngram >= rollout.max_completion_tokens:
        yield (
            f"reward repetition is 0 for every answer: reward.repetition_ngram = {reward.repetition_ngram} is not "
            f"below rollout.max_completion_tokens = {rollout.max_completion_tokens}"
        )
