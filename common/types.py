"""What crosses a process boundary. Frozen, slotted, keyword-only, complete at birth.

Axis names used here and everywhere else: P prompts a step, G completions a group, T tokens of a prompt,
C tokens of a completion, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from common.checksum import combine

Pixels = npt.NDArray[np.uint8]  # (height, width, 3) RGB
FinishReason = Literal["stop", "length"]
Origin = Literal["sampled", "given"]  # an engine drew the completions, or the data set gave them
CandidateProbabilities = Mapping[str, float]  # candidate -> its probability; they add up to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """A picture as its file holds it, which is read where its pixels are needed: `common.data.image.read_pixels`."""

    data: bytes  # of the file
    resize: int | None  # pixels a side that it is brought to; None: it keeps its size
    shape: tuple[int, int, int]  # of its pixels once they are read, turned upright and resized
    digest: bytes  # of all this

    @property
    def nbytes(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a data set, checked when it was read: a question, the image it is about, and the right label."""

    id: str  # stable over runs: "<split>/<row number>"
    problem: str
    image: Pixels | StoredPicture | None  # pixels are resized already; None for a text-only row
    label: str  # the bare label, never inside tags
    columns: Mapping[str, Any]  # every other column of the row, handed to each reward function


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """The output of the model's processor for the pictures of one prompt, made once for engine and learner."""

    digest: str  # of the pictures and the processor's settings: their name in every cache
    # Inputs of the model's forward. In Qwen2-VL: pixel_values (patches, channels * patch volume) and
    # image_grid_thw (images, 3), the frames, rows and columns of patches of each picture.
    values: Mapping[str, npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFeatures:
    """Image features in Ray's object store, which keeps them as long as one of these exists."""

    digest: str  # as in ImageFeatures
    nbytes: int
    ref: Any  # ObjectRef of an ImageFeatures


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadPicture:
    """A picture that engines and ranks read themselves; see `common.models.pictures`."""

    digest: str  # as in ImageFeatures
    picture: StoredPicture
    text: str  # any prompt with one picture: processors read a picture where it has its place in a text
    row: str  # id of a row that it is of, for messages

    @property
    def nbytes(self) -> int:
        return self.picture.nbytes


Images = ImageFeatures | SharedFeatures | UnreadPicture  # of one prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An example as the model reads it: token ids and image features."""

    example: Example
    text_ids: tuple[int, ...]  # before image expansion
    token_ids: tuple[int, ...]  # (T,) after image expansion: what engine and learner must see
    images: Images | None  # None for a prompt without a picture; see `common.object_store`

    @property
    def id(self) -> str:
        return self.example.id

    @property
    def features(self) -> Mapping[str, npt.NDArray[Any]]:
        """The model's image inputs by name, empty without a picture.

        Raises TypeError for features that are elsewhere: fetch them with `common.object_store.fetch_features`.
        """
        if isinstance(self.images, SharedFeatures | UnreadPicture):
            raise TypeError(f"the image features of {self.id} are not at hand: fetch them first")
        return self.images.values if self.images else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are sampled. The learner scores with the same temperature, top-k and top-p."""

    n: int  # G, completions a prompt
    temperature: float  # 0 is greedy
    top_p: float
    top_k: int  # 0 keeps all
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt on its way to an engine. Its pictures travel once, however many completions are asked for."""

    prompt_id: str
    token_ids: tuple[int, ...]  # (T,)
    images: Images | None
    seed: int  # see `request_seed`
    sampling: Sampling


class VersionSpan(NamedTuple):
    """Tokens in a row that weights of one version sampled."""

    version: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer: its ids as they were sampled, never tokenised again, with the EOS if there was one.

    Weights may change while it is sampled. Of 12 tokens, the last five by newer weights, `spans` is
    `(VersionSpan(3, 7), VersionSpan(4, 5))`.
    """

    token_ids: tuple[int, ...]  # (C,)
    logprobs: tuple[float, ...]  # (C,) under the distribution sampled from: after bans, temperature, top-k, top-p
    text: str  # without special tokens
    finish_reason: FinishReason
    spans: tuple[VersionSpan, ...] = ()  # empty where weights of one version sampled all of its group

    def __post_init__(self) -> None:
        if not self.token_ids or len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"a completion needs one log-prob a token: {len(self.token_ids)} v {len(self.logprobs)}")
        if self.spans and sum(span.tokens for span in self.spans) != len(self.token_ids):
            raise ValueError(f"spans of {self.spans} for {len(self.token_ids)} tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """G completions of one prompt: sampled by one engine under one version of the weights, or given by the data."""

    prompt_id: str
    completions: tuple[Completion, ...]  # (G,)
    origin: Origin
    seed: int  # 0 where given, as is the weights version
    engine_id: str | None  # None where given
    weights_version: int  # of the oldest that sampled a token of it

    def count_lag(self, version: int) -> int:
        """Count the steps between the oldest weights that sampled it and the learner's `version`; 0 where given."""
        return version - self.weights_version if self.origin == "sampled" else 0

    def list_spans(self) -> list[VersionSpan]:
        """List which weights sampled its tokens, one completion after the other."""
        spans = [span for one in self.completions for span in one.spans]
        return spans or [VersionSpan(self.weights_version, sum(len(one.token_ids) for one in self.completions))]

    @property
    def newest_version(self) -> int:
        """The version of the newest weights that sampled a token of it."""
        return max(span.version for span in self.list_spans())


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedGroup:
    """A prompt that gives no group to train on: an engine refused it, or a reward function failed.

    Engines that fail are the fleet's business, and never seen here.
    """

    prompt_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group with its rewards: one number for each completion and function, and their weighted sum."""

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
    """Where the bytes of one parameter lie inside a bucket.

    Example: a bucket of one array of 56 bytes holds a float32 bias of shape (2,) and a weight of shape (3, 4). They
    are `WeightEntry(name="bias", shape=(2,), index=0, start=0, ...)`, bytes 0 to 7, and
    `WeightEntry(name="weight", shape=(3, 4), index=0, start=8, ...)`, bytes 8 to 55.
    """

    name: str  # Hugging Face name
    dtype: str  # torch's name of it: "float32" or "bfloat16"
    shape: tuple[int, ...]
    index: int  # which of the bucket's arrays holds the bytes; tied parameters share them
    start: int  # first byte in that array


# What a run does to the parameters of a bucket. "changing": every step changes them. "fixed": no step does. "towers":
# they stand before the language model (vision tower and projector), of which no step changes anything.
BucketKind = Literal["changing", "fixed", "towers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """The bytes of several parameters, with their checksum. A fixed bucket comes again as the same object."""

    entries: tuple[WeightEntry, ...]
    xxh3: int  # 64 bits, over the arrays in turn
    payload: Any  # ObjectRef of a list of (nbytes,) uint8 arrays; None where bytes travel another way (nccl)
    kind: BucketKind


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """A published version of the full set of weights, which never changes."""

    version: int
    buckets: tuple[WeightBucket, ...]
    vision_unchanged: bool  # vision tower and projector are frozen: cached image features stay right

    @property
    def checksum(self) -> str | None:
        """One checksum of all bytes; None where they are broadcast, since NCCL checks what it carries."""
        return None if self.by_nccl else combine(bucket.xxh3 for bucket in self.buckets)

    @property
    def by_nccl(self) -> bool:
        """Whether the bytes are broadcast, so that only engines of the learner's NCCL group can take them."""
        return any(bucket.payload is None for bucket in self.buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """The answer of an engine that has loaded a manifest."""

    version: int  # now served
    note: str | None  # why it will never load directly, when it has just found that out
    checksum: str | None = None  # of all bytes it holds, as it found them; None where they came by NCCL


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupGap:
    """How far engine and learner are apart about the tokens of a sampled group: |difference of log-probs|, in nats."""

    total: float  # over its tokens
    largest: float
    tokens: int


GAP_EDGES = tuple(10 ** (half / 2) for half in range(-16, 3))  # nats: 1e-8, 3e-8, 1e-7, ... 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LagFigures:
    """How far engines and learner are apart about the tokens that were sampled with weights of one age."""

    tokens: int
    gap_mean: float  # |engine - learner| of a token's log-prob, in nats
    gap_max: float
    engine_kl: float  # KL(engine || learner) of a token
    effective_share: float  # effective sample size of exp(learner - engine), as a share of the tokens
    corrected_share: float  # of the tokens, whose weight was truncated or masked
    gap_counts: tuple[int, ...]  # tokens by their gap: below the first of GAP_EDGES, between two, from the last on


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The measurements of one optimizer step, over all ranks.

    Groups that `objective.dead_groups` leaves out are in the loss, with 0; all else is of the groups that were read.
    """

    loss: float
    kl: float
    entropy: float
    grad_norm: float
    updates: int  # optimizer steps taken; 0: the weights stayed as they were
    skipped: int  # optimizer steps left out, since loss or gradient was no finite number
    lr: float
    clip_share: float  # of sampled tokens; 0 where none was sampled, as the gaps
    logprob_gap_mean: float  # |engine - learner| over sampled tokens
    logprob_gap_max: float
    gaps: Mapping[str, GroupGap]  # of each sampled group, by prompt id
    engine_kl: float  # KL(engine || learner) of a token
    effective_share: float  # effective sample size of exp(learner - engine), as a share of the sampled tokens
    corrected_share: float  # of sampled tokens, whose weight was truncated or masked
    by_lag: Mapping[int, LagFigures]  # the same by steps between the weights that sampled and those that learn
    tokens: int  # that were read
    probabilities: Mapping[str, tuple[float, ...]]  # of each given completion under the policy, by prompt id
    left_out: int = 0  # groups that were not read, since they change no weight
    learner_seconds: float = field(default=0.0, compare=False)  # that the busiest rank learned


def request_seed(run_seed: int, step: int, prompt_id: str) -> int:
    """Return the random seed of one request, by run, step and prompt alone: any engine draws the same tokens.

    vLLM samples completion k of a request with seed + k. Seeds of 48 bits keep the completions of two prompts apart:

        request_seed(1, 0, "train/7") = 147003661428937  # completions draw with ...937, ...938, ...939, ...
        request_seed(1, 0, "train/8") = 236948598834357
        request_seed(1, 1, "train/7") = 11616454873928
    """
    digest = hashlib.blake2b(f"{run_seed}\0{step}\0{prompt_id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
