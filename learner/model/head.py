"""The language model's head as the learner uses it: hidden states in, log-probs of given tokens out.

The logits of all tokens at once would be the largest tensor of a step (V is 152,000), so they are made a block of
tokens at a time, and made again in the backward pass unless one block holds them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import ModelError

BARRED = -1e30  # logit of what cannot be drawn: its probability is exactly 0, and 0 times it is not NaN


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The tokens that were drawn, and from which distribution of the logits."""

    target: Tensor  # (tokens,) int64
    source: Tensor | None  # (tokens,) int64: which of all hidden states predict them; None: those given, in order
    temperature: float
    top_k: int  # 0 keeps all
    top_p: float
    banned: Tensor  # (ids,) int64
    softcap: float | None  # logits run into +-softcap: Gemma's final_logit_softcapping
    kept: Tensor | None  # (tokens, V) bool: the support to use; None draws it from these logits
    block_bytes: float  # largest (tokens, V) float32 block

    @property
    def cuts(self) -> bool:
        return self.kept is not None or bool(self.top_k) or self.top_p < 1


class ScoringHead(nn.Linear):
    """Any model's `lm_head`. Within `scoring` it returns (1, tokens) log-probs in place of logits."""

    _draw: Draw | None = None
    _seen: list[Tensor | None]

    @contextmanager
    def scoring(self, draw: Draw) -> Iterator[list[Tensor | None]]:
        """Yields a list that a forward fills with entropy (tokens,) and support (tokens, V), the latter None where
        all is kept. The head runs outside of checkpointed layers, so it is never run again without its draw."""
        self._draw, self._seen = draw, []
        try:
            yield self._seen
        finally:
            self._draw = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's name
        if self._draw is None:
            return super().forward(input)
        states = input.flatten(0, 1)
        if self._draw.source is not None:
            states = states[self._draw.source]
        logp, *rest = cast("Any", _LogProbs.apply)(states, self.weight, self._draw)
        self._seen += rest
        return cast("Tensor", logp)[None]


def scoring_head(model: Any) -> ScoringHead:
    """The head of `model`, or of the engine around it, made able to score. The weights stay what and where they are."""
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


def support(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """(tokens, V) bool: the tokens that vLLM's top-k (0 keeps all) and then top-p leave to be sampled.

    Rounding may put the sampled token of a tie just outside; the caller adds it.
    """
    size = logits.shape[-1]
    ordered, index = logits.sort(dim=-1)  # rising, so that the tail is what top-p cuts
    if 0 < top_k < size:
        ordered = ordered.masked_fill(ordered < ordered[:, size - top_k, None], -torch.inf)
    cut = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    cut[:, -1] = False
    cut |= ordered <= BARRED
    return torch.zeros_like(cut).scatter(-1, index, ~cut)


class _LogProbs(torch.autograd.Function):
    """(tokens, H) and (V, H) -> log-probs (tokens,), entropies (tokens,) and support (tokens, V) or None.

    One softmax serves log-prob, entropy and gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
        size = max(1, int(draw.block_bytes / (4 * len(weight))))
        blocks = [slice(at, at + size) for at in range(0, len(hidden), size)]
        logp, entropy = [], []
        kept: list[Any] = []
        for block in blocks:
            logits, own = _drawn_from(hidden[block], weight, draw, block, draw.kept)
            logits -= logits.amax(-1, keepdim=True)
            shares = logits.exp()
            total = shares.sum(-1, keepdim=True)
            shares /= total
            log_total = total[:, 0].log()
            logp.append(logits.gather(-1, draw.target[block, None])[:, 0] - log_total)
            entropy.append(log_total - torch.linalg.vecdot(shares, logits))
            kept.append(own)
        ctx.draw, ctx.blocks = draw, blocks
        ctx.kept = torch.cat(kept) if draw.cuts else None
        ctx.save_for_backward(hidden, weight, shares if len(blocks) == 1 and draw.softcap is None else None)
        entropies = torch.cat(entropy)
        ctx.mark_non_differentiable(entropies)
        return torch.cat(logp), entropies, ctx.kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, shares = ctx.saved_tensors
        draw: Draw = ctx.draw
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for block in ctx.blocks:
            rows, given, target = hidden[block], grads[0][block, None], draw.target[block, None]
            curve: Tensor | float = 1.0
            if shares is None or len(ctx.blocks) > 1:
                logits, _ = _drawn_from(rows, weight, draw, block, ctx.kept)
                if draw.softcap is not None:
                    curve = 1 - (logits * (draw.temperature / draw.softcap)).square().clamp(max=1)
                shares = logits.softmax(-1)
            slope = shares * -given  # of each logit: one for the drawn token, less everybody's share
            slope.scatter_(-1, target, slope.gather(-1, target) + given)
            slope = (slope * (curve / draw.temperature)).to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(slope, weight, out=of_hidden[block])
            if of_weight is not None:
                of_weight.addmm_(slope.T, rows, beta=int(block.start > 0))  # 0: nothing is read
        return of_hidden, of_weight, None


def _drawn_from(
    rows: Tensor, weight: Tensor, draw: Draw, block: slice, kept: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(rows, V) float32 logits of the distribution that was drawn from, and its support if that is cut."""
    logits = nn.functional.linear(rows, weight).float()  # nobody else's, so it is worked on in place
    if draw.softcap is not None:
        logits.div_(draw.softcap).tanh_().mul_(draw.softcap)
    if draw.temperature != 1:
        logits.div_(draw.temperature)
    logits.index_fill_(-1, draw.banned, BARRED)
    if not draw.cuts:
        return logits, None
    if kept is None:
        own = support(logits, top_k=draw.top_k, top_p=draw.top_p).scatter(-1, draw.target[block, None], True)
    else:
        own = kept[block]
    return logits.masked_fill_(~own, BARRED), own
