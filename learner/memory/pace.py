"""`--plan`: how long a step takes by the roofline of a GPU, and so how many engines, which lag and how many prompts.

Nothing is measured. A part takes as long as its arithmetic or its bytes do at the speed of the GPU, whichever is
longer, where a usual share of that speed is reached. Completions are as long as they may be.

A model of 7e9 parameters in bfloat16 on an H100 reads 14 GB for every token, which takes 6 ms at 70 % of 3.35 TB/s. So
completions of 500 tokens take 3 s, whether one is decoded or a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from common.config.schema import Config
from common.engine_sizes import count_kv_bytes
from learner.memory.plan import Counts

SAMPLING_SHARE, LEARNING_SHARE, BANDWIDTH_SHARE = 0.5, 0.4, 0.7  # of a GPU's peak, as well-kept systems report
LEAST_STEP_S = 0.002  # that an engine takes for one token of all: scheduling and launches, whatever the model; a guess
PUBLISHING = 20e9  # bytes a second from a rank to the engines, by NCCL or the object store


class Roofline(NamedTuple):
    """What a GPU can do at most, by its data sheet, dense and in bfloat16."""

    flops: float  # a second
    bandwidth: float  # bytes a second


# By a part of the name that CUDA gives. The first that fits counts.
ROOFLINES = {
    "B200": Roofline(2.25e15, 8.0e12),
    "H200": Roofline(989e12, 4.8e12),
    "H100": Roofline(989e12, 3.35e12),
    "A100": Roofline(312e12, 2.0e12),
    "L40S": Roofline(362e12, 0.864e12),
    "A10": Roofline(125e12, 0.6e12),
    "L4": Roofline(121e12, 0.3e12),
    "4090": Roofline(165e12, 1.0e12),
}
USUAL = "H100"  # where no GPU is at hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of the parts of a step."""

    prefill: float  # of prompts, by each engine
    decode: float  # of completions, by each engine
    learn: float
    publish: float

    @property
    def sample(self) -> float:
        return self.prefill + self.decode

    def step(self, *, max_lag: int) -> float:
        """Return the seconds of a step: with a lag the longer of sampling and learning hides the other."""
        together = max(self.sample, self.learn) if max_lag else self.sample + self.learn
        return together + self.publish


def compute_pace(
    counts: Counts, model_config: Any, config: Config, *, tokens: int, pictures: int, engines: int, gpu: Roofline
) -> Pace:
    """Compute the seconds of a step.

    Args:
        tokens: T of a prompt.
        pictures: of these, the tokens of its picture; each is made of four patches.
    """
    rollout, learner = config.rollout, config.learner
    text, size, length = counts.total - counts.vision, counts.itemsize, rollout.max_completion_tokens
    groups = math.ceil(rollout.prompts_per_step / engines)  # of each engine
    a_prompt = 2 * text * tokens + 2 * counts.vision * 4 * pictures  # FLOPs of one forward

    # An engine decodes at most `max_sequences` at once, and reads weights and cache for every token of each.
    language = model_config.get_text_config()
    a_token = language.num_hidden_layers * count_kv_bytes(language, size)  # bytes in the cache
    sequences = groups * rollout.group_size
    turns = math.ceil(sequences / rollout.max_sequences)
    at_once = math.ceil(sequences / turns)
    read = text * size + at_once * (tokens + length / 2) * a_token
    reading, computing = read / (BANDWIDTH_SHARE * gpu.bandwidth), 2 * text * at_once / (SAMPLING_SHARE * gpu.flops)
    a_step = max(reading, computing, LEAST_STEP_S)  # seconds for one token of each sequence

    # The policy goes forward and backward, and forward twice with checkpointing; the reference goes forward.
    passes = 3 + config.model.gradient_checkpointing + (learner.beta > 0)
    a_group = a_prompt + 2 * text * rollout.group_size * (length - 1)
    learned = math.ceil(rollout.prompts_per_step / learner.ranks) * a_group * passes * config.objective.updates
    return Pace(
        prefill=groups * a_prompt / (SAMPLING_SHARE * gpu.flops),
        decode=turns * length * a_step,
        learn=learned / (LEARNING_SHARE * gpu.flops),
        publish=counts.total * size / PUBLISHING,
    )


def count_engines(pace: Callable[[int], Pace], most: int) -> int | None:
    """Return how many engines keep up with the learner; None where not even `most` do, one prompt each."""
    return next((engines for engines in range(1, most + 1) if pace(engines).sample <= pace(engines).learn), None)


def find_roofline(name: str) -> tuple[str, Roofline] | None:
    """Return the roofline of the GPU that CUDA calls `name`, and what we call it; None for one that is not known."""
    return next(((known, line) for known, line in ROOFLINES.items() if known in name), None)
