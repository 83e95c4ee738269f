"""The losses that TRL has too, against TRL's own function: random log-probs, values and gradients.

Where the two define a thing differently, the setting that makes them one stands here. TRL's cispo has an absolute upper
bound (5.0 is our `clip_high` 4) and no lower one. Its entropy bonus and dual clip are as ours.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.objective import ObjectiveConfig
from learner.objective.losses import LOSSES
from tests.helpers.losses import make_inputs

LENGTHS, LONGEST, BETA = [5, 1, 3, 4, 2, 5], 6, 0.04
TOKEN: dict[str, Any] = {"importance_sampling_level": "token"}
SEQUENCE: dict[str, Any] = {"importance_sampling_level": "sequence"}

# ours, theirs
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({}, {"loss_type": "grpo", **TOKEN}),
    "dual clip": ({"dual_clip": 1.5}, {"loss_type": "grpo", "delta": 1.5, **TOKEN}),
    "clip-higher": ({"clip_high": 0.28}, {"loss_type": "grpo", "epsilon_high": 0.28, **TOKEN}),
    "corrected KL": ({"kl_corrected": True}, {"loss_type": "grpo", "use_bias_correction_kl": True, **TOKEN}),
    "dr_grpo": ({"aggregation": "constant"}, {"loss_type": "dr_grpo", **TOKEN}),
    "dapo": ({"aggregation": "token"}, {"loss_type": "dapo", **TOKEN}),
    "bnpo": ({"aggregation": "token"}, {"loss_type": "bnpo", **TOKEN}),
    "cispo": (
        {"loss": "cispo", "aggregation": "token", "clip_low": 0.0, "clip_high": 0.3},
        {"loss_type": "cispo", "epsilon_high": 1.3, **TOKEN},
    ),
    "sapo": ({"loss": "sapo"}, {"loss_type": "sapo", **TOKEN}),
    "gspo": ({"loss": "gspo", "clip_low": 0.05, "clip_high": 0.05}, {"loss_type": "grpo", "epsilon": 0.05, **SEQUENCE}),
    "luspo": ({"loss": "gspo", "aggregation": "sequence_sum"}, {"loss_type": "luspo", **SEQUENCE}),
    "sequence mask": ({"sequence_mask": 0.1}, {"loss_type": "grpo", "off_policy_mask_threshold": 0.1, **TOKEN}),
    "TIS": (
        {"correction": "truncate", "correction_high": 1.2},
        {"loss_type": "grpo", "use_vllm": True, **TOKEN},
    ),
}


def draw() -> dict[str, Tensor]:
    """(R, longest) log-probs, right of each row's end without meaning, and (R,) advantages, in float64."""
    generator = torch.Generator().manual_seed(3)
    shape = (len(LENGTHS), max(LENGTHS))

    def near(base: Tensor) -> Tensor:
        return base + 0.8 * (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5)

    new = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    old = near(new)
    return {
        "new": new,
        "old": old,
        "engine": near(old),
        "reference": near(new),
        "advantage": torch.randn(shape[0], generator=generator, dtype=torch.float64),
        "mask": (torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]).double(),
    }


def ours(drawn: dict[str, Tensor], settings: dict[str, Any], logp: Tensor) -> Tensor:
    inside = drawn["mask"].bool()
    objective = ObjectiveConfig(**settings)
    inputs = make_inputs(
        logp[inside],
        old_logp=drawn["old"][inside],
        ref_logp=drawn["reference"][inside],
        engine_logp=drawn["engine"][inside],
        row=[row for row, length in enumerate(LENGTHS) for _ in range(length)],
        advantage=drawn["advantage"],
        longest=LONGEST,
        beta=BETA,
        objective=objective,
    )
    return LOSSES[objective.loss](inputs).loss


def theirs(drawn: dict[str, Tensor], settings: dict[str, Any], logp: Tensor) -> Tensor:
    """TRL's loss of one batch on one process, its model replaced by log-probs."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    options = {"epsilon": 0.2, "epsilon_high": None, "delta": None, "off_policy_mask_threshold": None} | settings
    upper = options["epsilon_high"] if options["epsilon_high"] is not None else options["epsilon"]
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    me = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=options["off_policy_mask_threshold"],
        get_off_policy_mask=trainer.get_off_policy_mask,
        importance_sampling_level=options["importance_sampling_level"],
        beta=BETA,
        args=SimpleNamespace(
            use_bias_correction_kl=options.get("use_bias_correction_kl", False),
            delta=options["delta"],
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            steps_per_generation=1,
        ),
        loss_type=options["loss_type"],
        epsilon_low=options["epsilon"],
        epsilon_high=upper,
        use_vllm=options.get("use_vllm", False),
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        accelerator=accelerator,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.ones(logp.shape, dtype=torch.int64)
    batch = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": drawn["mask"],
        "advantages": drawn["advantage"],
        "old_per_token_logps": drawn["old"],
        "ref_per_token_logps": drawn["reference"],
        "sampling_per_token_logps": drawn["engine"],
        "importance_sampling_ratio": (drawn["old"] - drawn["engine"]).exp().clamp(max=1.2),
        "num_items_in_batch": drawn["mask"].sum(),
    }
    loss: Tensor = trainer._compute_loss(me, None, batch)  # noqa: SLF001
    return loss


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_trl(case: str) -> None:
    drawn, (settings, options) = draw(), CASES[case]
    values, gradients = [], []
    for compute, own in ((ours, settings), (theirs, options)):
        logp = drawn["new"].clone().requires_grad_()
        loss = compute(drawn, own, logp)
        torch.autograd.backward(loss)
        assert logp.grad is not None
        values.append(loss.item())
        gradients.append(logp.grad)
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    assert gradients[0].count_nonzero() > 5
