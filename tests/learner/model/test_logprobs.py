"""Law 2: the shared-prefix forward is the naive one, for policy and reference, in value and gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import DataError
from common.types import ImageFeatures, ScoredGroup
from learner.model.attention import install
from learner.model.head import ScoringSpec, find_support
from learner.model.logprobs import packed_logprobs
from learner.model.pack import Pack, build_pack
from learner.model.rows import build_rows
from learner.objective.losses import LOSSES
from learner.objective.ratios import SURROGATES
from learner.objective.records import CLS_RL, Coefficients
from learner.trainer.loss_terms import count_step
from tests.helpers import oracle, tiny

BETA = 0.1
DTYPES = [torch.float32, torch.bfloat16]
PLAIN = ScoringSpec(banned=tiny.BANNED)
DRAWN = {"plain": PLAIN, "cut": ScoringSpec(temperature=0.7, top_k=7, top_p=0.8, banned=tiny.BANNED)}


def models(family: tiny.Family) -> tuple[Any, Any]:
    """Policy and a reference a little off it."""
    policy = tiny.model(family)
    reference = copy.deepcopy(policy).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return policy, reference


def packed_loss(
    policy: Any,
    reference: Any,
    packs: Sequence[Sequence[ScoredGroup]],
    spec: ScoringSpec,
    beta: float = BETA,
    loss: str = "grpo",
    build: Callable[..., Pack] = build_pack,
    drift: Sequence[float] = (),
) -> Tensor:
    """The loss as a rank computes it, over one pack or several.

    Args:
        drift: of each token, how far its log-prob rose since the step began; nothing: this is the first update.
    """
    counts = count_step([scored for groups in packs for scored in groups], CLS_RL)
    shares = []
    for groups in packs:
        pack = build(groups, policy, banned=spec.banned)
        scores = packed_logprobs(policy, pack, spec)
        with torch.no_grad():
            ref = packed_logprobs(reference, pack, spec, kept=scores.kept)
        moved, drift = torch.tensor(drift[: len(pack.row)]), drift[len(pack.row) :]
        old = scores.logp.detach() - moved if len(moved) else None
        record = pack.inputs(scores.logp, ref.logp, old_logp=old, step=counts, coefficients=Coefficients(beta=beta))
        shares.append(LOSSES[loss](record).loss)
    return torch.stack(shares).sum()


def gradient_of(loss: Tensor, model: Any) -> Tensor:
    model.zero_grad()
    torch.autograd.backward(loss)
    return oracle.gradient(model)


@pytest.mark.parametrize("family", get_args(tiny.Family))
@pytest.mark.parametrize("drawn", DRAWN)
def test_packed_is_naive(family: tiny.Family, drawn: str) -> None:
    policy, reference = models(family)
    spec, groups = DRAWN[drawn], tiny.ragged()
    pack = build_pack(groups, policy, banned=spec.banned)
    scores = packed_logprobs(policy, pack, spec)
    ref = packed_logprobs(reference, pack, spec, kept=scores.kept)
    rows = [
        oracle.row_logprobs(policy, reference, scored, index, spec)
        for scored in groups
        for index in range(len(scored.rewards))
    ]
    for found, wanted in zip((scores.logp, ref.logp, scores.entropy), zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(wanted), rtol=0, atol=1e-5)
    assert scores.logp.dtype == torch.float32

    wanted_gradient = gradient_of(oracle.loss(policy, reference, groups, spec, beta=BETA), policy)
    found_gradient = gradient_of(packed_loss(policy, reference, [groups], spec), policy)
    assert oracle.relative_error(found_gradient, wanted_gradient) < 1e-5
    split = gradient_of(packed_loss(policy, reference, [groups[:2], groups[2:3], groups[3:]], spec), policy)
    assert oracle.relative_error(split, wanted_gradient) < 1e-5, "packing matters"
    policy.gradient_checkpointing_enable()
    again = gradient_of(packed_loss(policy, reference, [groups], spec), policy)
    assert torch.equal(again, found_gradient), "checkpointing matters"


@pytest.mark.slow
@pytest.mark.parametrize("family", get_args(tiny.Family))
@pytest.mark.parametrize("way", ["sdpa", "auto"])
def test_packed_is_naive_in_bfloat16(family: tiny.Family, way: str) -> None:
    """Laws 2 and 3 where the model computes in bfloat16: whatever the packs, no further from float32 than naive rows
    in bfloat16 are."""
    policy, reference = (model.to(torch.bfloat16) for model in models(family))
    groups = tiny.ragged()
    exact = copy.deepcopy(policy).float()
    wanted = gradient_of(oracle.loss(exact, copy.deepcopy(reference).float(), groups, PLAIN, beta=BETA), exact)
    naive = gradient_of(oracle.loss(policy, reference, groups, PLAIN, beta=BETA), policy)
    for model in (policy, reference):
        install(model, way)
    for packs in ([groups], [groups[:2], groups[2:3], groups[3:]]):
        found = gradient_of(packed_loss(policy, reference, packs, PLAIN), policy)
        assert oracle.relative_error(found, wanted) < 1.2 * oracle.relative_error(naive, wanted) < 0.05


@pytest.mark.parametrize("loss", SURROGATES)
@pytest.mark.parametrize("moved", [False, True])
def test_losses_of_samples_follow_naive_rows(loss: str, moved: bool) -> None:
    """Laws 2 and 3: in the first update of a step and after it, however packed, with a shared prefix or without."""
    policy, reference = models("qwen2_vl")
    groups = tiny.ragged()
    tokens = sum(len(one.token_ids) for scored in groups for one in scored.group.completions)
    drift = (torch.rand(tokens, generator=torch.Generator().manual_seed(1)) - 0.5).tolist()  # ratios 0.6 to 1.6
    old, steps = oracle.all_logprobs(policy, groups, PLAIN), iter(drift)
    if moved:
        old = [row - torch.tensor([next(steps) for _ in row]) for row in old]
    naive = oracle.policy_loss(policy, reference, groups, PLAIN, beta=BETA, name=loss, old=old)
    wanted, value = gradient_of(naive, policy), naive.item()
    for packs in ([groups], [groups[:2], groups[2:3], groups[3:]], [[one] for one in groups]):
        for build in (build_pack, build_rows):
            found = packed_loss(policy, reference, packs, PLAIN, loss=loss, build=build, drift=drift if moved else ())
            assert found.item() == pytest.approx(value, rel=1e-5, abs=1e-6)
            assert oracle.relative_error(gradient_of(found, policy), wanted) < 1e-5


@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in SURROGATES])
def test_losses_of_given_groups_follow_the_brute_force_gradient(loss: str) -> None:
    """Expected reward, KL and likelihood over naive rows, however packed, with a shared prefix or without; at any
    temperature."""
    policy, reference = models("qwen2_vl")
    spec, groups = ScoringSpec(temperature=0.7, banned=tiny.BANNED), tiny.ragged()
    if loss == "sft":
        naive = oracle.sft_loss(policy, reference, groups, spec)
    else:
        naive = oracle.exact_loss(policy, reference, groups, spec, beta=BETA, name=loss)
    wanted, value = gradient_of(naive, policy), naive.item()
    for packs in ([groups], [groups[:2], groups[2:3], groups[3:]], [[one] for one in groups]):
        for build in (build_pack, build_rows):
            found = packed_loss(policy, reference, packs, spec, loss=loss, build=build)
            if loss != "exact_arcsine":  # of it the gradient tells: the baseline changes the value alone
                assert found.item() == pytest.approx(value, rel=1e-5)
            assert oracle.relative_error(gradient_of(found, policy), wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_in_bfloat16(loss: str) -> None:
    """Laws 2 and 3 over all losses where the model computes in bfloat16, those of samples after an update."""
    policy, reference = (model.to(torch.bfloat16) for model in models("qwen2_vl"))
    exact, exact_reference = copy.deepcopy(policy).float(), copy.deepcopy(reference).float()
    groups = tiny.ragged()
    tokens = sum(len(one.token_ids) for scored in groups for one in scored.group.completions)
    drift = (torch.rand(tokens, generator=torch.Generator().manual_seed(1)) - 0.5).tolist()

    def by_rows(model: Any, ref: Any) -> Tensor:
        if loss == "sft":
            return oracle.sft_loss(model, ref, groups, PLAIN)
        if loss not in SURROGATES:
            return oracle.exact_loss(model, ref, groups, PLAIN, beta=BETA, name=loss)
        steps = iter(drift)
        old = [row - torch.tensor([next(steps) for _ in row]) for row in oracle.all_logprobs(model, groups, PLAIN)]
        return oracle.policy_loss(model, ref, groups, PLAIN, beta=BETA, name=loss, old=old)

    wanted = gradient_of(by_rows(exact, exact_reference), exact)
    naive = gradient_of(by_rows(policy, reference), policy)
    for packs in ([groups], [groups[:2], groups[2:3], groups[3:]]):
        moved = drift if loss in SURROGATES else ()
        found = gradient_of(packed_loss(policy, reference, packs, PLAIN, loss=loss, drift=moved), policy)
        assert oracle.relative_error(found, wanted) < 1.2 * oracle.relative_error(naive, wanted) < 0.08


def test_pack_of_text_alone_runs_the_vision_tower_for_nothing() -> None:
    policy, reference = models("qwen2_vl")
    groups = [tiny.group(seed, text=8 + seed, pictures=[], lengths=[2, 3]) for seed in range(2)]
    wanted = gradient_of(oracle.loss(policy, reference, groups, PLAIN, beta=BETA), policy)
    found = gradient_of(packed_loss(policy, reference, [groups], PLAIN), policy)
    assert oracle.relative_error(found, wanted) < 1e-5
    towers = [parameter.grad for parameter in policy.model.visual.parameters()]
    assert all(grad is not None and not grad.any() for grad in towers)


def test_images_belong_to_their_prompts() -> None:
    """Fault 6: two images of one size swap without any count going wrong; only values show it."""
    policy, _ = models("qwen2_vl")
    groups = [tiny.group(seed, text=7, pictures=[(2, 3)], lengths=[2, 4]) for seed in range(3)]
    swapped = [
        replace(scored, prompt=replace(scored.prompt, images=groups[other].prompt.images))
        for scored, other in zip(groups, (0, 2, 1), strict=True)
    ]

    def by_group(batch: Sequence[ScoredGroup]) -> Sequence[Tensor]:
        pack = build_pack(batch, policy, banned=())
        return torch.split(packed_logprobs(policy, pack, ScoringSpec()).logp.detach(), 6)

    right, wrong = by_group(groups), by_group(swapped)
    alone = [by_group([scored])[0] for scored in groups]
    for index in range(3):
        torch.testing.assert_close(right[index], alone[index], rtol=0, atol=1e-5)
    torch.testing.assert_close(wrong[0], right[0], rtol=0, atol=1e-5)
    assert all((wrong[index] - right[index]).abs().max() > 1e-2 for index in (1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["sdpa", "auto"])
def test_tokens_a_completion_may_not_see_cannot_matter(way: str, dtype: torch.dtype) -> None:
    """Law 7: another completion, another group, and what comes after a token leave its log-prob bit-equal."""
    policy = models("qwen2_vl")[0].to(dtype)
    install(policy, way)
    groups = tiny.ragged()

    def score(batch: Sequence[ScoredGroup]) -> Tensor:
        pack = build_pack(batch, policy, banned=())
        return packed_logprobs(policy, pack, ScoringSpec()).logp.detach()

    first = groups[0].group.completions[1]
    changed = replace(first, token_ids=(*first.token_ids[:2], *[(t + 1) % 80 for t in first.token_ids[2:]]))
    completions = (groups[0].group.completions[0], changed, *groups[0].group.completions[2:])
    other = [replace(groups[0], group=replace(groups[0].group, completions=completions)), *groups[1:]]
    before, after = score(groups), score(other)
    unseen = torch.ones(len(before), dtype=torch.bool)
    unseen[1 + 2 : 1 + 4] = False  # the changed tokens themselves: completions of 1 and 4 tokens come first
    assert torch.equal(after[unseen], before[unseen])
    assert (after[~unseen] - before[~unseen]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["grpo", "exact_arcsine"])
def test_equal_rewards_and_no_kl_give_zero_gradient(loss: str, dtype: torch.dtype) -> None:
    """Law 7, through the model: rewards whose float32 mean is none of them."""
    policy, reference = (model.to(dtype) for model in models("qwen2_vl"))
    flat = [tiny.group(size, text=6, pictures=[(2, 2)], lengths=[2] * size, rewards=[1.2] * size) for size in (3, 16)]
    assert not gradient_of(packed_loss(policy, reference, [flat], PLAIN, beta=0.0, loss=loss), policy).any()


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (5, 1.0), (5, 0.5), (1, 1.0), (0, 1e-6), (500, 0.99)])
def test_support_is_the_naive_one(top_k: int, top_p: float, on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu)
    logits = torch.randn(20, 60, generator=torch.Generator().manual_seed(0)) * 2
    logits[:, :4] = -torch.inf
    found = find_support(logits, top_k=top_k, top_p=top_p)
    for row in range(len(logits)):
        best = int(logits[row].argmax())
        wanted = oracle.kept_ids(logits[row], best, ScoringSpec(top_k=top_k, top_p=top_p))
        assert found[row].nonzero()[:, 0].tolist() == wanted


def test_sampled_token_outside_the_support_stays_finite() -> None:
    policy, _ = models("qwen2_vl")
    pack = build_pack(tiny.ragged(), policy, banned=())
    scores = packed_logprobs(policy, pack, ScoringSpec(top_k=1))
    assert scores.logp.isfinite().all()
    assert scores.kept is not None
    assert set(scores.kept.sum(-1).tolist()) <= {1, 2}


def test_prompt_whose_parts_disagree_is_refused() -> None:
    policy, _ = models("qwen2_vl")
    scored = tiny.group(0, text=6, pictures=[(2, 2)], lengths=[1, 1])
    prompt = scored.prompt
    values = prompt.features
    others = [{"image_grid_thw": np.array([[1, 4, 2]])}, {"pixel_values": values["pixel_values"][:-1]}]
    wrong = [
        replace(prompt, token_ids=(*prompt.token_ids, tiny.IMAGE)),
        *(replace(prompt, images=ImageFeatures(digest="?", values={**values, **other})) for other in others),
        replace(prompt, images=None),
    ]
    for broken in wrong:
        with pytest.raises(DataError, match="test/0"):
            build_pack([replace(scored, prompt=broken)], policy, banned=())


def test_banned_token_in_a_completion_is_refused() -> None:
    """Fault 9: the learner would read it as an image and fail far from the cause."""
    policy, _ = models("qwen2_vl")
    scored = tiny.group(0, text=6, pictures=[(2, 2)], lengths=[3, 1])
    banned = scored.group.completions[0].token_ids[1]
    with pytest.raises(DataError, match=str(banned)):
        build_pack([scored], policy, banned=(tiny.IMAGE, banned))


def test_banned_tokens_have_no_probability() -> None:
    """Fault 9, the other half: what the engine never samples must not take mass in the learner."""
    policy, _ = models("qwen2_vl")
    groups = [tiny.group(0, text=6, pictures=[], lengths=[1, 1])]
    free = packed_logprobs(policy, build_pack(groups, policy, banned=()), ScoringSpec())
    barred = packed_logprobs(policy, build_pack(groups, policy, banned=tiny.BANNED), PLAIN)
    assert (barred.logp > free.logp).all()


def test_the_worked_example_of_a_pack() -> None:
    """Of the docstring of `learner.model.pack`."""
    pack = build_pack(
        [tiny.group(1, text=2, pictures=[], lengths=[2, 1, 3])], tiny.model(), banned=(), tower_runs=False
    )
    assert pack.ids.shape == (1, 5)
    assert pack.positions is not None
    assert pack.positions[0, 0].tolist() == [0, 1, 2, 2, 3]
    assert pack.source.tolist() == [1, 2, 1, 1, 3, 4]
    assert pack.row.tolist() == [0, 0, 1, 2, 2, 2]


def test_engine_log_probs_and_advantages_line_up() -> None:
    policy, _ = models("qwen2_vl")
    groups = tiny.ragged()
    pack = build_pack(groups, policy, banned=())
    completions = [c for scored in groups for c in scored.group.completions]
    for index, completion in enumerate(completions):
        at = pack.row == index
        assert tuple(pack.target[at].tolist()) == completion.token_ids
        np.testing.assert_allclose(pack.engine_logp[at], completion.logprobs, rtol=1e-6)
    assert len(pack.advantage) == len(completions)
