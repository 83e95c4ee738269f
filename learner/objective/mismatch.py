"""How far engines and learner are apart about sampled tokens, as sums that add up over groups, packs and ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.types import GAP_EDGES, LagFigures

_EDGES = torch.tensor(GAP_EDGES, dtype=torch.float64)
_MOST_LOG_WEIGHT = 300.0  # the square of a larger weight is infinite in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """The sums over some tokens. Their gap is |learner - engine log-prob|, their weight exp(learner - engine)."""

    tokens: int = 0
    gap: float = 0.0
    largest: float = 0.0
    weight: float = 0.0
    squared_weight: float = 0.0
    kl: float = 0.0  # of engine to learner
    corrected: int = 0  # tokens whose weight was truncated or masked
    counts: tuple[int, ...] = (0,) * (len(GAP_EDGES) + 1)  # of gaps, see `LagFigures`

    @classmethod
    def of(cls, difference: Tensor, touched: Tensor) -> Mismatch:
        """Sum up tokens by their (N,) learner - engine log-probs and whether each was `touched`, both on the host."""
        difference = difference.double()
        gap, weight = difference.abs(), difference.clamp(max=_MOST_LOG_WEIGHT).exp()
        bins = torch.bucketize(gap, _EDGES, right=True)
        return cls(
            tokens=len(gap),
            gap=gap.sum().item(),
            largest=gap.max().item(),
            weight=weight.sum().item(),
            squared_weight=weight.square().sum().item(),
            kl=(weight - difference - 1).sum().item(),
            corrected=int(touched.sum()),
            counts=tuple(torch.bincount(bins, minlength=len(GAP_EDGES) + 1).tolist()),
        )

    @classmethod
    def add_up(cls, parts: Iterable[Mismatch]) -> Mismatch:
        """Return the sums over the tokens of all parts."""
        total = cls()
        for part in parts:
            total = cls(
                tokens=total.tokens + part.tokens,
                gap=total.gap + part.gap,
                largest=float(torch.tensor([total.largest, part.largest], dtype=torch.float64).max()),  # NaN if one is
                weight=total.weight + part.weight,
                squared_weight=total.squared_weight + part.squared_weight,
                kl=total.kl + part.kl,
                corrected=total.corrected + part.corrected,
                counts=tuple(map(sum, zip(total.counts, part.counts, strict=True))),
            )
        return total

    def average(self) -> LagFigures:
        """Return the means over the tokens; 0 of none, whose effective share is 1."""
        tokens = max(1, self.tokens)
        return LagFigures(
            tokens=self.tokens,
            gap_mean=self.gap / tokens,
            gap_max=self.largest,
            engine_kl=self.kl / tokens,
            effective_share=self._find_effective_share(),
            corrected_share=self.corrected / tokens,
            gap_counts=self.counts,
        )

    def _find_effective_share(self) -> float:
        """Return the effective sample size of the weights as a share of their count: 1 of equal ones (Kong 1992)."""
        return self.weight * self.weight / (self.tokens * self.squared_weight) if self.squared_weight else 1.0
