"""Log-probs of the sampled tokens, as the engine defines them, from one call of the ordinary model on a pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.model.head import Draw, scoring_head
from learner.model.pack import Pack


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
    logits_mb: float = 512.0,
) -> Scores:
    """Scores of every completion token of `pack`; only these tokens ever get logits, and not more at once than
    `logits_mb` holds in float32.

    Args:
        model: Hugging Face model or the DeepSpeed engine around it.
        kept: (tokens, V) of the policy, when the model is the reference: both must live on the same support, or their
            KL would be infinite. None draws it from these logits.
    """
    text = getattr(model, "module", model).config.get_text_config()
    draw = Draw(
        target=pack.target,
        source=pack.source if pack.positions is None else None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        banned=torch.tensor(banned, dtype=torch.long, device=pack.target.device),
        softcap=getattr(text, "final_logit_softcapping", None),
        kept=kept,
        block_bytes=logits_mb * 2**20,
    )
    with scoring_head(model).scoring(draw) as seen:
        shared = {"position_ids": pack.positions, "logits_to_keep": pack.source}
        output = model(
            input_ids=pack.ids,
            **(shared if draw.source is None else {}),
            **pack.attention,
            **_image_inputs(pack),
            use_cache=False,
        )
    entropy, support = seen
    assert entropy is not None
    return Scores(output.logits[0], entropy, support)


def _image_inputs(pack: Pack) -> dict[str, Any]:
    """Pixels for the tower, or what a frozen one has made of them before."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if "image_embeds" not in pack.images:
        return pack.images
    made = BaseModelOutputWithPooling(pooler_output=[pack.images["image_embeds"]])  # type: ignore[arg-type]
    return {"mm_encoder_outputs": {"image": made}}
