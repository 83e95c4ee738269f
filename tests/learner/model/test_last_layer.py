"""The last layer computes what is read of it, and nothing of that is different."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from learner.model.last_layer import ROWS, shorten
from tests.helpers import oracle, tiny
from tests.learner.model.test_logprobs import BETA, PLAIN, gradient_of, models, packed_loss


def seen_by(module: Any) -> list[int]:
    """Filled with the number of tokens that every call of `module` computes."""
    sizes: list[int] = []
    run = module.forward

    def forward(states: Tensor) -> Tensor:
        sizes.append(states.shape[1])
        found: Tensor = run(states)
        return found

    module.forward = forward
    return sizes


@pytest.mark.parametrize("checkpointed", [False, True])
def test_law_2_with_the_layer_shortened(checkpointed: bool) -> None:
    policy, reference = models("qwen2_vl")
    groups = tiny.ragged()
    wanted = gradient_of(oracle.loss(policy, reference, groups, PLAIN, beta=BETA), policy)
    shorten(policy)
    shorten(reference)
    first, last = (seen_by(policy.get_decoder().layers[layer].mlp) for layer in (0, -1))
    if checkpointed:
        policy.gradient_checkpointing_enable()
    found = gradient_of(packed_loss(policy, reference, [groups], PLAIN), policy)
    assert oracle.relative_error(found, wanted) < 1e-5
    times = 1 + checkpointed
    read = sum(1 + sum(len(c.token_ids) - 1 for c in scored.group.completions) for scored in groups)
    assert last == [read] * times
    assert len(first) == times, "the others compute every token"
    assert min(first) > read


def test_without_the_keyword_all_is_computed() -> None:
    policy = tiny.model()
    ids = torch.randint(20, 60, (2, 9))
    wanted = policy(input_ids=ids).logits
    shorten(policy)
    shorten(policy)  # once is enough
    assert torch.equal(policy(input_ids=ids).logits, wanted)
    read = policy(input_ids=ids[:1], **{ROWS: torch.tensor([8])}).logits[0, 8]
    torch.testing.assert_close(read, wanted[0, 8], rtol=0, atol=1e-5)
