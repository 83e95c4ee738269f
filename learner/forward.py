"""Log-probs of the sampled tokens, as the engine defines them, from one call of the ordinary model on a pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.pack import Pack


class Scores(NamedTuple):
    """Of the distribution that is sampled from: after bans, temperature, top-k and top-p."""

    logp: Tensor  # (tokens,) float32
    entropy: Tensor  # (tokens,) float32, without graph
    kept: Tensor | None  # (tokens, V) bool: what top-k and top-p leave; None where they leave all


def packed_logprobs(
    model: Any,
    pack: Pack,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    banned: Sequence[int],
    kept: Tensor | None = None,
) -> Scores:
    """Scores of every completion token of `pack`; only these tokens ever get logits.

    Args:
        model: Hugging Face model or the DeepSpeed engine around it.
        kept: (tokens, V) of the policy, when the model is the reference: both must live on the same support, or their
            KL would be infinite. None draws it from these logits.
    """
    output = model(
        input_ids=pack.ids,
        position_ids=pack.positions,
        attention_mask={"full_attention": pack.mask},
        **_image_inputs(pack),
        logits_to_keep=pack.source,
        use_cache=False,
    )
    logits = output.logits[0].float() / temperature  # (tokens, V)
    forbidden = torch.tensor(banned, dtype=torch.long, device=logits.device)
    logits = logits.index_fill(-1, forbidden, -torch.inf)
    if kept is None and (top_k or top_p < 1):
        kept = support(logits.detach(), top_k=top_k, top_p=top_p).scatter(-1, pack.target[:, None], True)
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    total = logits.logsumexp(-1)
    logp = logits.gather(-1, pack.target[:, None])[:, 0] - total
    with torch.no_grad():
        entropy = torch.special.entr((logits - total[:, None]).exp()).sum(-1)
    return Scores(logp, entropy, kept)


def _image_inputs(pack: Pack) -> dict[str, Any]:
    """Pixels for the tower, or what a frozen one has made of them before."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if "image_embeds" not in pack.images:
        return pack.images
    made = BaseModelOutputWithPooling(pooler_output=[pack.images["image_embeds"]])  # type: ignore[arg-type]
    return {"mm_encoder_outputs": {"image": made}}


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
    cut |= ordered.isneginf()
    return torch.zeros_like(cut).scatter(-1, index, ~cut)
