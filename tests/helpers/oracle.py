"""The naive learner: one row at a time, full logits, no sharing, no packing. Slow, and plainly right."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.types import ScoredGroup
from learner.model.head import ScoringSpec


def row_logits(model: Any, scored: ScoredGroup, index: int, spec: ScoringSpec) -> Tensor:
    """(C, V) logits after bans and temperature, of completion `index` alone in a batch of one."""
    prompt, completion = scored.prompt, scored.group.completions[index]
    ids = torch.tensor([*prompt.token_ids, *completion.token_ids])[None]
    inputs: dict[str, Any] = {"input_ids": ids}
    named = inspect.signature(type(model.model).forward).parameters
    inputs |= {name: torch.tensor(value) for name, value in prompt.features.items() if name in named}
    if "mm_token_type_ids" in named:
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    every: Tensor = model(**inputs, use_cache=False).logits[0]
    logits = every[len(prompt.token_ids) - 1 : -1].float().clone()
    logits[:, list(spec.banned)] = -torch.inf
    return logits / spec.temperature


def kept_ids(logits: Tensor, target: int, spec: ScoringSpec) -> list[int]:
    """Ids that top-k and then top-p leave of one (V,) distribution, by walking down from the likeliest."""
    order = torch.argsort(logits, descending=True).tolist()
    order = [i for i in order if logits[i] > -torch.inf][: spec.top_k or None]
    shares = logits[order].softmax(-1).tolist()
    kept, mass = [], 0.0
    for token, share in zip(order, shares, strict=True):
        if mass >= spec.top_p:
            break
        kept.append(token)
        mass += share
    return sorted({*kept, target})


def row_logprobs(
    model: Any, reference: Any, scored: ScoredGroup, index: int, spec: ScoringSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """(C,) log-probs of policy and reference on the policy's support, and the policy's entropies."""
    logits = row_logits(model, scored, index, spec)
    with torch.no_grad():
        ref_logits = row_logits(reference, scored, index, spec)
    policy, ref, entropy = [], [], []
    for at, target in enumerate(scored.group.completions[index].token_ids):
        kept = kept_ids(logits[at].detach(), target, spec)
        place = kept.index(target)
        log_p = logits[at][kept].log_softmax(-1)
        policy.append(log_p[place])
        ref.append(ref_logits[at][kept].log_softmax(-1)[place])
        entropy.append(-(log_p.exp() * log_p).sum().detach())
    return torch.stack(policy), torch.stack(ref), torch.stack(entropy)


def loss(model: Any, reference: Any, groups: Sequence[ScoredGroup], spec: ScoringSpec, *, beta: float) -> Tensor:
    """CLS-RL's GRPO loss over all groups, one row at a time, in the first update of a step."""
    return policy_loss(model, reference, groups, spec, beta=beta, name="grpo", old=None)


def policy_loss(
    model: Any,
    reference: Any,
    groups: Sequence[ScoredGroup],
    spec: ScoringSpec,
    *,
    beta: float,
    name: str,
    old: Sequence[Tensor] | None,
) -> Tensor:
    """The loss `name` over all groups, one row at a time, with the default clip of 0.2 on both sides.

    Args:
        old: (C,) log-probs of each row before the step began; None: those of the model, in a first update.
    """
    rows, before = [], iter(old or ())
    for scored in groups:
        rewards = np.array(scored.rewards, dtype=np.float32)
        scaled = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        for index, advantage in enumerate(scaled.tolist()):
            lp, ref, _ = row_logprobs(model, reference, scored, index, spec)
            kl = (ref - lp).exp() - (ref - lp) - 1
            rows.append(beta * kl.mean() - _gain(name, lp, lp.detach() if old is None else next(before), advantage))
    return torch.stack(rows).mean()


def _gain(name: str, lp: Tensor, old: Tensor, advantage: float) -> Tensor:
    """What one row of (C,) log-probs gains under a surrogate, written as its paper does."""

    def clipped(ratio: Tensor) -> Tensor:
        return torch.stack([min(one * advantage, one.clamp(0.8, 1.2) * advantage) for one in ratio.reshape(-1)]).mean()

    if name == "grpo":
        return clipped((lp - old).exp())
    if name == "gspo":
        return clipped((lp.sum() / len(lp) - old.sum() / len(lp)).exp())
    if name == "gspo_token":  # the value of gspo, each token with its own gradient
        ratio = ((lp - old).detach().sum() / len(lp)).exp()
        return clipped(ratio * lp.exp() / lp.detach().exp())
    if name == "gmpo":
        logs = [one.clamp(max=0.2) if advantage > 0 else one.clamp(min=-0.2) for one in lp - old]
        return advantage * torch.stack(logs).exp().prod() ** (1 / len(lp))
    if name == "rloo":
        return clipped(lp.exp().prod() / old.exp().prod())
    if name == "cispo":
        return (((lp - old).exp().clamp(0.8, 1.2)).detach() * advantage * lp).mean()
    if name == "sapo":
        heat = 1.0 if advantage > 0 else 1.05
        return (4 / heat / (1 + (-heat * ((lp - old).exp() - 1)).exp()) * advantage).mean()
    raise ValueError(name)


def all_logprobs(model: Any, groups: Sequence[ScoredGroup], spec: ScoringSpec) -> list[Tensor]:
    """(C,) log-probs of every row, without graph."""
    with torch.no_grad():
        return [
            row_logprobs(model, model, scored, index, spec)[0]
            for scored in groups
            for index in range(len(scored.rewards))
        ]


def exact_loss(
    model: Any, reference: Any, groups: Sequence[ScoredGroup], spec: ScoringSpec, *, beta: float, name: str
) -> Tensor:
    """Expected reward and KL over the listed completions by brute force; but for `exact_raw` with one more answer for
    all that is not listed, which earns what the worst of the list does, and a baseline over all of them."""
    losses = []
    for scored in groups:
        rows = [row_logprobs(model, reference, scored, index, spec) for index in range(len(scored.rewards))]
        share = torch.stack([policy.sum() for policy, _, _ in rows]).exp()
        ref = torch.stack([ref.sum() for _, ref, _ in rows]).exp()
        rewards = torch.tensor(scored.rewards)
        gain = (share * rewards).sum()
        if name != "exact_raw":
            shares, rewards = torch.cat([share, 1 - share.sum()[None]]), torch.cat([rewards, rewards.min()[None]])
            known = shares.detach().double()
            mean = (known * rewards).sum()
            std = (known * (rewards - mean) ** 2).sum().sqrt()
            gain = (shares * (rewards - mean).float()).sum() / (std.float() + 1e-4)
            if name == "exact_log":
                gain = (shares * (rewards - rewards.min())).sum().log()
        kl = (share * (share / ref).log() - share + ref).sum()
        losses.append(beta * kl - gain)
    return torch.stack(losses).mean()


def sft_loss(model: Any, reference: Any, groups: Sequence[ScoredGroup], spec: ScoringSpec) -> Tensor:
    """Mean over all completions of the mean negative log-likelihood of a token."""
    rows = [
        -row_logprobs(model, reference, scored, index, spec)[0].mean()
        for scored in groups
        for index in range(len(scored.rewards))
    ]
    return torch.stack(rows).mean()


def gradient(model: Any) -> Tensor:
    """All gradients as one float64 vector: in float32 even a norm is off by a thousandth."""
    flat = [(p.grad if p.grad is not None else torch.zeros_like(p)).double().reshape(-1) for p in model.parameters()]
    return torch.cat(flat)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
