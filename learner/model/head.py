"""The language model's head as the learner uses it: hidden states in, log-probs of given tokens out.

The logits of all tokens at once would be the largest tensor of a step (V is 152,000). They are made a block of tokens
at a time, and made again in the backward pass unless one block holds them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from common.config.schema import Config
from common.errors import ModelError

BARRED = -1e30  # logit of a token without probability: exp gives exactly 0, and 0 times it is not NaN

FIXED_POINT = 2**40  # units of a probability of 1: finer than float32, and V of them stay far below 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSpec:
    """The distribution that log-probs are taken from. By default it is the model's own."""

    temperature: float = 1.0
    top_k: int = 0  # 0 keeps every token
    top_p: float = 1.0
    banned: tuple[int, ...] = ()  # ids that have no probability
    logits_mb: float = 512.0  # largest float32 block of logits, in MiB

    @classmethod
    def of(cls, config: Config, *, banned: tuple[int, ...]) -> ScoringSpec:
        """Return the distribution that the engines of a run sample from."""
        rollout = config.rollout
        return cls(
            temperature=rollout.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            banned=banned,
            logits_mb=config.learner.logits_mb,
        )

    def uncut(self) -> ScoringSpec:
        """Return the same distribution without top-k and top-p, which could cut a given answer."""
        return replace(self, top_k=0, top_p=1.0)


class ScoringHead(nn.Linear):
    """The `lm_head` of any model. Inside `scoring` its forward returns (1, N) log-probs in place of logits."""

    _request: _Request | None = None
    _seen: list[Tensor | None]

    @contextmanager
    def scoring(
        self,
        spec: ScoringSpec,
        target: Tensor,
        *,
        source: Tensor | None = None,
        kept: Tensor | None = None,
        softcap: float | None = None,
    ) -> Iterator[list[Tensor | None]]:
        """Score tokens `target` in every forward inside; yield a list that a forward fills with entropy and support.

        Entropy is (N,). Support is (N, V) bool, the tokens that top-k and top-p leave, or None where they leave all.
        The head is never inside a checkpointed layer, so no backward runs this forward again.

        Args:
            target: (N,) int64 ids.
            source: (N,) int64, the hidden state that predicts each target; None: those given to the head, in order.
            kept: (N, V) bool support to use in place of the one these logits would give.
            softcap: bound of the logits, as Gemma's final_logit_softcapping.
        """
        banned = torch.tensor(spec.banned, dtype=torch.long, device=target.device)
        self._request, self._seen = _Request(spec, target, source, kept, softcap, banned), []
        try:
            yield self._seen
        finally:
            self._request, self._seen = None, []  # the entropy has a graph, which must not outlive the caller's use

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's name
        """Return (1, N) log-probs inside `scoring`, else logits of (rows, S, width) hidden states."""
        if self._request is None:
            return super().forward(input)
        states = input.flatten(0, 1)
        if self._request.source is not None:
            states = states[self._request.source]
        logp, *rest = cast("Any", _LogProbs.apply)(states, self.weight, self._request)
        self._seen += rest
        return cast("Tensor", logp)[None]


def make_scoring_head(model: Any) -> ScoringHead:
    """Make the head of `model`, or of the engine around it, able to score, and return it.

    The weights stay what and where they are. Raises ModelError for a head that is not linear or has a bias.
    """
    head: Any = model.get_output_embeddings()
    if isinstance(head, ScoringHead):
        return head
    plain = type(head) is nn.Linear and head.bias is None
    if not plain:
        raise ModelError(
            "the learner needs a linear language head without bias",
            got=type(head).__name__,
            remedy="use another model, and leave lm_head out of a LoRA's modules",
        )
    head.__class__ = ScoringHead
    return cast("ScoringHead", head)


def find_support(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Find the tokens that vLLM's top-k (0 keeps all) and then top-p leave to be sampled: (N, V) bool.

    Rounding may put the sampled token of a tie just outside; the caller adds it.
    """
    size = logits.shape[-1]
    ordered, index = logits.sort(dim=-1)  # rising, so that the tail is what top-p cuts
    if 0 < top_k < size:
        ordered = ordered.masked_fill(ordered < ordered[:, size - top_k, None], -torch.inf)
    probs = ordered.softmax(-1)
    cut = find_tail_exactly(probs, 1 - top_p) if probs.is_cuda else probs.cumsum(-1) <= 1 - top_p
    cut[:, -1] = False
    cut |= ordered <= BARRED
    return torch.zeros_like(cut).scatter(-1, index, ~cut)


def find_tail_exactly(probs: Tensor, most: float) -> Tensor:
    """Find the first tokens of each row whose (N, V) probabilities add up to at most `most`: (N, V) bool.

    They are added as integers. torch adds floats on a GPU in an order that changes from run to run, and refuses to
    where runs must be reproducible (`learner.trainer.rng`).
    """
    units = probs.mul(FIXED_POINT).to(torch.int64)
    return units.cumsum_(-1) <= int(most * FIXED_POINT)


class _Request(NamedTuple):
    """What one forward of the head has to score; see `ScoringHead.scoring`."""

    spec: ScoringSpec
    target: Tensor  # (N,)
    source: Tensor | None  # (N,)
    kept: Tensor | None  # (N, V)
    softcap: float | None
    banned: Tensor  # (ids,) int64

    @property
    def cuts(self) -> bool:
        """Say whether some tokens are left out of the distribution, beside the banned ones."""
        return self.kept is not None or bool(self.spec.top_k) or self.spec.top_p < 1


class _LogProbs(torch.autograd.Function):
    """(N, width) hidden states and (V, width) weight -> log-probs (N,), entropies (N,), support (N, V) or None.

    One softmax serves log-prob, entropy and gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, request: _Request) -> tuple[Tensor, Tensor, Tensor | None]:
        size = max(1, int(request.spec.logits_mb * 2**20 / (4 * len(weight))))  # tokens of a block
        blocks = [slice(at, at + size) for at in range(0, len(hidden), size)]
        logp, entropy = [], []
        kept: list[Any] = []
        for block in blocks:
            logits, own = _make_logits(hidden[block], weight, request, block, request.kept)

            # The softmax in place: logits become log-probs but for the logarithm of the total.
            logits -= logits.amax(-1, keepdim=True)
            probs = logits.exp()
            total = probs.sum(-1, keepdim=True)
            probs /= total
            log_total = total[:, 0].log()

            logp.append(logits.gather(-1, request.target[block, None])[:, 0] - log_total)
            entropy.append(log_total - torch.linalg.vecdot(probs, logits))
            kept.append(own)
        ctx.request, ctx.blocks = request, blocks
        ctx.kept = torch.cat(kept) if request.cuts else None
        ctx.save_for_backward(hidden, weight, probs if len(blocks) == 1 and request.softcap is None else None)
        ctx.set_materialize_grads(False)  # None, not zeros, for what no loss reads
        return torch.cat(logp), torch.cat(entropy), ctx.kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, probs = ctx.saved_tensors
        grad_logp, grad_entropy = grads[0], grads[1]
        if grad_logp is None:
            grad_logp = hidden.new_zeros(len(hidden), dtype=torch.float32)
        request: _Request = ctx.request
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for block in ctx.blocks:
            rows, own, target = hidden[block], grad_logp[block, None], request.target[block, None]
            softcap_grad: Tensor | float = 1.0
            if probs is None or len(ctx.blocks) > 1:  # not kept by the forward
                logits, _ = _make_logits(rows, weight, request, block, ctx.kept)
                if request.softcap is not None:  # of cap * tanh(x / cap): 1 - tanh^2, barred logits clamped to 0
                    softcap_grad = 1 - (logits * (request.spec.temperature / request.softcap)).square().clamp(max=1)
                probs = logits.softmax(-1)

            # d logp / d logit: 1 for the target itself, less the probability of each token.
            grad_logits = probs * -own
            grad_logits.scatter_(-1, target, grad_logits.gather(-1, target) + own)
            if grad_entropy is not None:
                grad_logits += grad_entropy[block, None] * _slope_of_entropy(probs)
            grad_logits = (grad_logits * (softcap_grad / request.spec.temperature)).to(hidden.dtype)

            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[block])
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, rows, beta=int(block.start > 0))  # 0: the empty tensor is not read
        return grad_hidden, grad_weight, None


def _slope_of_entropy(probs: Tensor) -> Tensor:
    """Return d entropy / d logit, -p (log p + entropy): (rows, V)."""
    log_probs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()  # times a probability of 0 it is 0
    entropy = -torch.linalg.vecdot(probs, log_probs)
    slope: Tensor = -probs * (log_probs + entropy[:, None])
    return slope


def _make_logits(
    rows: Tensor, weight: Tensor, request: _Request, block: slice, kept: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the (rows, V) float32 logits of the distribution asked for, and its support where top-k or top-p cut."""
    spec = request.spec
    logits = nn.functional.linear(rows, weight).float()  # nobody else's, so the rest works in place
    if request.softcap is not None:
        logits.div_(request.softcap).tanh_().mul_(request.softcap)
    if spec.temperature != 1:
        logits.div_(spec.temperature)
    logits.index_fill_(-1, request.banned, BARRED)
    if not request.cuts:
        return logits, None
    if kept is None:
        own = find_support(logits, top_k=spec.top_k, top_p=spec.top_p).scatter(-1, request.target[block, None], True)
    else:
        own = kept[block]
    return logits.masked_fill_(~own, BARRED), own
