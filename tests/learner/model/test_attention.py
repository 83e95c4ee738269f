"""Every way to attend is the dense one, on its device; what a way cannot do is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import ModelError
from learner.model import attention, sparse_attention
from learner.model.attention import FlashAttention, FlexAttention, find_way, install
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.pack import build_pack
from tests.helpers import oracle, tiny
from tests.learner.model.test_logprobs import PLAIN, gradient_of, models, packed_loss
from tests.learner.model.test_sparse_attention import dense, inputs, layout

CPU = torch.device("cpu")
RAGGED = layout([(9, [3, 0, 5]), (1, []), (4, [1, 1, 2])])


def varlen(q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, *longest: int, **rest: Any) -> Tensor:
    """What flash attention's documentation says of it: sequences end to end, the last query sees the last key."""
    assert rest["window_size"] == (-1, 0)
    outs, wide = [], q.shape[1] // k.shape[1]
    for at, queries in enumerate(q_ends.diff().tolist()):
        keys = int(k_ends.diff()[at])
        assert queries <= longest[0]
        assert keys <= longest[1]
        rows = q[q_ends[at] : q_ends[at + 1]].transpose(0, 1)
        key, value = (t[k_ends[at] : k_ends[at + 1]].transpose(0, 1).repeat_interleave(wide, 0) for t in (k, v))
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        found = torch.nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=rest["scale"])
        outs.append(found.transpose(0, 1))
    return torch.cat(outs)


def test_segments_are_dense_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    q, k, v = inputs(RAGGED.size)
    found, wanted = FlashAttention(RAGGED, CPU)(q, k, v, 0.3), dense(q, k, v, RAGGED)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        *(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_blocks_are_dense_attention() -> None:
    """The kernel is compiled for GPUs only; its mask and values are the same without."""
    q, k, v = (tensor.detach() for tensor in inputs(RAGGED.size))
    torch.testing.assert_close(FlexAttention(RAGGED, CPU)(q, k, v, 0.3), dense(q, k, v, RAGGED), rtol=1e-5, atol=1e-5)


def lora(model: Any) -> Any:
    import peft

    names = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    torch.manual_seed(3)
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=names, r=2, init_lora_weights=False))


@pytest.mark.parametrize("adapted", [False, True])
def test_sparse_is_naive_under_lora_and_checkpointing(adapted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout reaches a layer again when it is recomputed, and goes through PEFT's wrapper."""
    monkeypatch.setattr(sparse_attention, "CALL_COST", 0.0)  # as with a large model: as many rectangles as there are
    policy, reference = models("qwen2_vl")
    for model in (policy, reference):
        install(model, "sparse")
    trained = lora(policy) if adapted else policy
    groups = tiny.ragged()
    wanted = gradient_of(oracle.loss(policy, reference, groups, PLAIN, beta=0.1), policy)
    found = gradient_of(packed_loss(policy, reference, [groups], PLAIN), policy)
    assert oracle.relative_error(found, wanted) < 1e-5
    policy.gradient_checkpointing_enable()
    assert torch.equal(gradient_of(packed_loss(policy, reference, [groups], PLAIN), policy), found)
    whole = packed_logprobs(trained, build_pack(groups, policy, banned=()), ScoringSpec()).logp
    policy.set_attn_implementation("sdpa")
    other = packed_logprobs(trained, build_pack(groups, policy, banned=()), ScoringSpec()).logp
    torch.testing.assert_close(whole, other, rtol=0, atol=1e-5)


def test_long_ragged_groups_are_naive_however_they_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No, one and three pictures; completions of 1 to 64 tokens; logits in blocks of ten tokens."""
    monkeypatch.setattr(sparse_attention, "CALL_COST", 2e4)
    policy, reference = models("qwen2_vl")
    groups = [
        tiny.group(1, text=30, pictures=[(3, 4)], lengths=[64, 1, 17]),
        tiny.group(2, text=7, pictures=[], lengths=[2, 33]),
        tiny.group(3, text=9, pictures=[(1, 2), (5, 3), (2, 2)], lengths=[40, 1]),
    ]
    wanted = gradient_of(oracle.loss(policy, reference, groups, PLAIN, beta=0.1), policy)
    for model in (policy, reference):
        install(model, "sparse")
    for packs in ([groups], [groups[:1], groups[1:]], [groups[1:2], [groups[2], groups[0]]]):
        found = gradient_of(packed_loss(policy, reference, packs, replace(PLAIN, logits_mb=0.004)), policy)
        assert oracle.relative_error(found, wanted) < 1e-5


def test_bfloat16_is_close() -> None:
    exact, _ = models("qwen2_vl")
    wanted = score(exact, "sdpa")
    rough = copy.deepcopy(exact).to(torch.bfloat16)
    errors = {way: (score(rough, way) - wanted).abs().mean() for way in ("sdpa", "auto")}
    assert errors["auto"] < 1.2 * errors["sdpa"] < 0.1


def score(model: Any, way: str) -> Tensor:
    install(model, way)
    return packed_logprobs(model, build_pack(tiny.ragged(), model, banned=()), ScoringSpec()).logp


def test_without_a_pack_it_is_sdpa() -> None:
    """An ordinary, padded batch through a model that attends in packs."""
    model, _ = models("qwen2_vl")
    ids = torch.randint(0, 80, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    wanted = model(input_ids=ids, attention_mask=mask).logits
    install(model, "auto")
    found = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], rtol=0, atol=1e-5)


def test_sliding_layers_get_their_own_dense_mask() -> None:
    model = tiny.model()
    model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    model.config.text_config.sliding_window = 3
    install(model, "auto")
    assert find_way(model) == "sdpa"
    masks = attention.make_pack_inputs(RAGGED, model)["attention_mask"]
    full, sliding = (masks[kind][0, 0] == 0 for kind in ("full_attention", "sliding_attention"))
    assert sliding.sum(-1).max() == 3
    assert bool((full | ~sliding).all())
    with pytest.raises(ModelError, match="sliding"):
        install(model, "sparse")


@pytest.mark.parametrize(("way", "cuda"), [("flash", False), ("flex", False), ("sparse", True), ("flash", True)])
def test_a_way_that_is_not_there_is_refused(way: str, cuda: bool) -> None:
    with pytest.raises(ModelError, match=rf"(?s)attention = {way}.*{'GPU' if cuda else 'CPU'}"):
        install(tiny.model(), way, cuda=cuda)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["flash", "flex"])
def test_gpu_ways_are_dense_attention(way: str) -> None:
    device = torch.device("cuda")
    where = layout([(300, [64, 0, 3] * 4), (17, [1] * 16), (130, [200, 90])])
    q, k, v = (
        torch.randn(1, where.size, heads, 64, device=device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for heads in (4, 2, 2)
    )
    ways: dict[str, Any] = {"flash": FlashAttention, "flex": FlexAttention}
    found, wanted = ways[way](where, device)(q, k, v, 0.125), dense(q, k, v, where, 0.125)
    slope = torch.randn_like(found)
    pairs = zip(*(torch.autograd.grad(out, (q, k, v), slope) for out in (found, wanted)), strict=True)
    for one, other in ((found, wanted), *pairs):
        torch.testing.assert_close(one, other, rtol=3e-2, atol=3e-2)
