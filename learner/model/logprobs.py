"""Log-probs of completion tokens, as engines define them, from one call of the ordinary model on a pack."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from learner.model.head import ScoringSpec, make_scoring_head
from learner.model.pack import Pack


class Scores(NamedTuple):
    """The scores of the N completion tokens of a pack, under the distribution of a ScoringSpec."""

    logp: Tensor  # (N,) float32
    entropy: Tensor  # (N,) float32
    kept: Tensor | None  # (N, V) bool: the tokens that top-k and top-p leave; None where they leave all


def packed_logprobs(model: Any, pack: Pack, spec: ScoringSpec, *, kept: Tensor | None = None) -> Scores:
    """Score every completion token of `pack`. No other token gets logits, and only `spec.logits_mb` at a time.

    Args:
        model: Hugging Face model or the DeepSpeed engine around it.
        kept: (N, V) of the policy, when `model` is the reference: both must have the same support, or their KL would
            be infinite. None takes the support from these logits.
    """
    text = getattr(model, "module", model).config.get_text_config()
    shared = pack.positions is not None  # a pack, not rows of their own: the model gathers the states that are read
    places = {"position_ids": pack.positions, "logits_to_keep": pack.source} if shared else {}
    scoring = make_scoring_head(model).scoring(
        spec,
        pack.target,
        source=None if shared else pack.source,
        kept=kept,
        softcap=getattr(text, "final_logit_softcapping", None),
    )
    with scoring as seen:
        output = model(input_ids=pack.ids, **places, **pack.attention, **_image_inputs(pack), use_cache=False)
    entropy, support = seen
    assert entropy is not None
    return Scores(output.logits[0], entropy, support)


def _image_inputs(pack: Pack) -> dict[str, Any]:
    """Return the pictures as keywords of the model: pixels, or the features a frozen vision tower made before."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if "image_embeds" not in pack.images:
        return pack.images
    made = BaseModelOutputWithPooling(pooler_output=[pack.images["image_embeds"]])  # type: ignore[arg-type]
    return {"mm_encoder_outputs": {"image": made}}
