"""Losses of given answers: the exact ones learn from every candidate of a row, so that nothing is estimated, `sft` from
the row's label.

The exact losses differ in what they make of the expected reward. Let p be the probability of the right answers. Then
`exact_raw` climbs p itself, `exact_arcsine` 2 arcsin sqrt(p), which is what GRPO climbs with endless samples, and
`exact_log` log p, which is the likelihood. Each weighs the gradient of p more where p is small: 1, 1 / sqrt(p (1 - p))
and 1 / p. Sources: arXiv:2510.13651 for the limit of GRPO, arXiv:2602.02710 for the likelihood.

What is not listed earns 0 under `exact_raw`, and the least reward of the list under the others. The gradient is that
over all answers there are: the policy gradient's baseline cancels only over all of them, so none is subtracted here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objective.records import LossInputs, LossOutputs


def exact_raw_loss(inputs: LossInputs) -> LossOutputs:
    """Compute -(expected reward) + beta KL of each group, then the mean over the groups of the step.

    The expected reward is the sum of pi(y) r(y) over the rows y of the group, pi(y) the probability of the whole row.

    A row's candidates "cat" (probability 0.5, reward 1) and "dog" (0.3, reward 0): the expected reward is 0.5. Its
    gradient with respect to the log-prob of a row is pi(y) r(y): 0.5 for each token of "cat", 0 for those of "dog".
    """
    logp = inputs.sum_rows(inputs.logp)
    return _add_kl((logp.exp() * inputs.reward).sum(), logp, inputs)


def exact_arcsine_loss(inputs: LossInputs) -> LossOutputs:
    """Compute the same with (reward - least) / (std + 1e-4) in place of the reward, std of all answers by probability.

    A constant added to all rewards changes nothing, and equal rewards teach nothing.

    "cat" (0.5, reward 1), "dog" (0.3, reward 0) and 0.2 for all else: std 0.5, so the gradient with respect to
    log-probs is 0.5 / 0.5 = 1 for "cat" and 0 for "dog".
    """
    logp, above = inputs.sum_rows(inputs.logp), _rise_above_least(inputs)
    share = logp.detach().exp()

    # Mean and std over the listed rows and one more answer, which stands for all else and is 0 above the least.
    mean = _sum_by_group(share * above, inputs)
    squares = (above - mean[inputs.group]).square()
    unlisted = (1 - _sum_by_group(share, inputs)).clamp(min=0)
    std = (_sum_by_group(share * squares, inputs) + unlisted * mean.square()).sqrt()
    return _add_kl((logp.exp() * above / (std[inputs.group] + 1e-4)).sum(), logp, inputs)


def exact_log_loss(inputs: LossInputs) -> LossOutputs:
    """Compute -log of the expected (reward - least): with one right answer its negative log-likelihood.

    A constant added to all rewards changes nothing, and equal rewards teach nothing.

    "cat" (0.5, reward 1) and "dog" (0.3, reward 0): -log 0.5, and the gradient with respect to log-probs is 1 for
    "cat" and 0 for "dog". With reward 0.5 for "dog" it is 0.5 / 0.65 and 0.15 / 0.65.
    """
    logp, above = inputs.sum_rows(inputs.logp), _rise_above_least(inputs)
    counted = above > 0
    group = inputs.group[counted]
    terms = logp[counted] + above[counted].log()
    # log-sum-exp by group: probabilities of long answers are too small to be added up as such
    top = terms.detach().new_full((inputs.groups_here,), -torch.inf).scatter_reduce(0, group, terms.detach(), "amax")
    sums = terms.new_zeros(inputs.groups_here).index_add(0, group, (terms - top[group]).exp())
    taught = sums > 0
    return _add_kl((sums[taught].log() + top[taught]).sum(), logp, inputs)


def sft_loss(inputs: LossInputs) -> LossOutputs:
    """Compute the negative log-likelihood: mean over the tokens of each row, then over the rows of the step."""
    loss = inputs.mean_rows(-inputs.logp).sum() / inputs.step.sequences
    return LossOutputs(loss=loss, kl=inputs.logp.new_zeros(()))


def _add_kl(gain: Tensor, logp: Tensor, inputs: LossInputs) -> LossOutputs:
    """Return beta KL - gain per group of the step, from the () gain of this pack and the (R,) log-probs of its rows.

    The KL is the sum of pi log(pi / ref) - pi + ref over the list, which need not hold all probability. It is what k3
    estimates: never negative, and 0 only where both agree.
    """
    groups = inputs.step.groups
    if inputs.ref_logp is None:
        return LossOutputs(loss=-gain / groups, kl=gain.new_zeros(()))
    ref_logp = inputs.sum_rows(inputs.ref_logp)
    kl = (logp.exp() * (logp - ref_logp - 1) + ref_logp.exp()).sum()  # no ratio, which would overflow where pi is 0
    return LossOutputs(loss=(inputs.coefficients.beta * kl - gain) / groups, kl=kl.detach() / groups)


def _rise_above_least(inputs: LossInputs) -> Tensor:
    """Return the (R,) rewards less the least of their group: exactly 0 where all are equal."""
    least = inputs.reward.new_zeros(inputs.groups_here).scatter_reduce(
        0, inputs.group, inputs.reward, "amin", include_self=False
    )
    return inputs.reward - least[inputs.group]


def _sum_by_group(values: Tensor, inputs: LossInputs) -> Tensor:
    """Sum (R,) values of rows into (P,) values of the groups of this pack."""
    return values.new_zeros(inputs.groups_here).index_add(0, inputs.group, values)
