"""What crosses a process boundary. Frozen, slotted, keyword-only, complete at birth.

Axis names used here and everywhere else: P prompts a step, G completions a group, T tokens of a prompt,
C tokens of a completion, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # (height, width, 3) RGB
FinishReason = Literal["stop", "length"]
Origin = Literal["sampled", "given"]  # an engine drew the completions, or the data set gave them
CandidateProbabilities = Mapping[str, float]  # candidate -> its probability; they add up to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a data set, checked at the door: what is asked, about which image, and the right label."""

    id: str  # stable over runs: "<split>/<row number>"
    problem: str
    image: Pixels | None  # already resized; None for a text-only row
    label: str  # the bare label, never inside tags
    columns: Mapping[str, Any]  # every other column of the row, handed to each reward function


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """What the model's processor makes of the pictures of one prompt, made once for engine and learner."""

    digest: str  # of the pictures and the processor's settings: their name in every cache
    values: Mapping[str, npt.NDArray[Any]]  # inputs of the model's forward, as in Qwen2-VL
    # pixel_values (patches, channels * patch volume) and image_grid_thw (images, 3)

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFeatures:
    """Image features that lie in Ray's object store, as long as there is one of these."""

    digest: str
    nbytes: int
    ref: Any  # ObjectRef of an ImageFeatures


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An example as the model reads it."""

    example: Example
    text_ids: tuple[int, ...]  # before image expansion
    token_ids: tuple[int, ...]  # (T,) after image expansion: what engine and learner must see
    images: ImageFeatures | SharedFeatures | None  # None for a prompt without a picture; see `common.object_store`

    @property
    def id(self) -> str:
        return self.example.id

    @property
    def features(self) -> Mapping[str, npt.NDArray[Any]]:
        """The model's image inputs, empty without a picture. Of a prompt that holds them: see `common.object_store`."""
        if isinstance(self.images, SharedFeatures):
            raise TypeError(f"the image features of {self.id} are in the object store: open them first")
        return self.images.values if self.images else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. The learner scores with the same temperature, top-k and top-p."""

    n: int  # G, completions a prompt
    temperature: float  # 0 is greedy
    top_p: float
    top_k: int  # 0 keeps all
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt on its way to an engine. Its pictures travel once, whatever n is."""

    prompt_id: str
    token_ids: tuple[int, ...]  # (T,)
    images: ImageFeatures | SharedFeatures | None
    seed: int
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer: ids as sampled (never re-tokenised), EOS included when it came."""

    token_ids: tuple[int, ...]  # (C,)
    logprobs: tuple[float, ...]  # (C,) of the distribution sampled from: after bans, temperature, top-k, top-p
    text: str  # without special tokens
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        if not self.token_ids or len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"a completion needs one log-prob a token: {len(self.token_ids)} v {len(self.logprobs)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """G completions of one prompt: sampled by one engine under one version of the weights, or given by the data."""

    prompt_id: str
    completions: tuple[Completion, ...]  # (G,)
    origin: Origin
    seed: int  # 0 where given, as is the weights version
    engine_id: str | None  # None where given
    weights_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedGroup:
    """A prompt that gives no group to train on: an engine refused it, or a reward function failed.

    Engines that fail are the fleet's business, and never seen here.
    """

    prompt_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group with its rewards, one a completion and function, and their weighted sum."""

    prompt: Prompt
    group: Group
    rewards_by_name: Mapping[str, tuple[float, ...]]  # name -> (G,)
    rewards: tuple[float, ...]  # (G,) weighted sum

    def __post_init__(self) -> None:
        size = len(self.group.completions)
        if self.prompt.id != self.group.prompt_id:
            raise ValueError(f"group of {self.group.prompt_id} scored against prompt {self.prompt.id}")
        for name, values in {**self.rewards_by_name, "sum": self.rewards}.items():
            if len(values) != size:
                raise ValueError(f"reward {name}: {len(values)} values for {size} completions of {self.prompt.id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEntry:
    """One parameter inside a bucket."""

    name: str  # Hugging Face name
    dtype: str  # numpy or torch dtype name, "float32" or "bfloat16"
    shape: tuple[int, ...]
    index: int  # of the bucket's array that holds its bytes; tied parameters share theirs
    start: int  # of its bytes in that array


# What a run does to the parameters of a bucket: every step changes them; no step does; no step changes any parameter
# of what stands before the language model, and these are of that.
BucketKind = Literal["changing", "fixed", "towers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """The bytes of several parameters, with their checksum. Those that never change come again as the same object."""

    entries: tuple[WeightEntry, ...]
    xxh3: int  # 64 bits, over the arrays in turn
    payload: Any  # ObjectRef of a list of (nbytes,) uint8 arrays; None where bytes travel another way (nccl)
    kind: BucketKind


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """A published, immutable version of the full set of weights."""

    version: int
    buckets: tuple[WeightBucket, ...]
    vision_unchanged: bool  # what stands before the language model is frozen: image features stay right

    @property
    def by_nccl(self) -> bool:
        """The bytes are broadcast, and only engines that joined the learner's NCCL group can take them."""
        return any(bucket.payload is None for bucket in self.buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """What an engine says once it has taken a manifest."""

    version: int  # now served
    note: str | None  # why it loads the slow way from now on, when it has just found that out


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one optimizer step measured, over all ranks."""

    loss: float
    kl: float
    entropy: float
    grad_norm: float
    lr: float
    clip_share: float  # of sampled tokens, as the gaps, which are 0 where none were
    logprob_gap_mean: float
    logprob_gap_max: float
    tokens: int
    seconds: float
    probabilities: Mapping[str, tuple[float, ...]]  # under the policy, of each written completion, by prompt id


def request_seed(run_seed: int, step: int, prompt_id: str) -> int:
    """Seed of one request, a pure function of (run, step, prompt): a replay anywhere draws the same tokens.

    vLLM gives child k of the request seed + k, so seeds are spread over 48 bits to keep children apart.
    """
    digest = hashlib.blake2b(f"{run_seed}\0{step}\0{prompt_id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
