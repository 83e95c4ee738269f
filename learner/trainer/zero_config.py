"""The configuration that DeepSpeed is given: the ZeRO stage, the size of its buffers, what is offloaded, AdamW.

It imports no DeepSpeed, so that `--plan` counts with the same sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.config.schema import Config

LARGEST_BUCKET = 500_000_000  # elements of a gradient bucket, DeepSpeed's default; a small model needs no such buffer
LIVE_PARAMETERS = 1_000_000_000  # most elements that ZeRO-3 keeps whole at a time, DeepSpeed's default
_HOST = {"device": "cpu", "pin_memory": True}
_OFFLOADED: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "optimizer": {"offload_optimizer": _HOST},
    "optimizer_and_parameters": {"offload_optimizer": _HOST, "offload_param": _HOST},
}


def training_config(model: Any, config: Config) -> dict[str, Any]:
    """Return the configuration of an engine that trains `model` with AdamW."""
    learner = config.learner
    return partition_config(model, config, stage=learner.zero_stage) | {
        "gradient_clipping": learner.grad_clip if learner.zero_stage else 0.0,  # stage 0: `zero.optimizer_step` clips
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": learner.lr,
                "betas": learner.betas,
                "eps": learner.eps,
                "weight_decay": learner.weight_decay,
                "torch_adam": True,  # DeepSpeed's own would be compiled first, offloaded or not, and is no faster
                "fused": True,
            },
        },
    }


def partition_config(model: Any, config: Config, *, stage: int) -> dict[str, Any]:
    """Return the configuration of an engine that only holds `model`, partitioned at ZeRO `stage`."""
    elements = sum(parameter.numel() for parameter in model.parameters())
    bucket = min(LARGEST_BUCKET, elements)
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # boundaries are set by hand: the number of packs varies
        "steps_per_print": 1_000_000_000,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_max_live_parameters": LIVE_PARAMETERS,
            "stage3_param_persistence_threshold": 10 * model.config.get_text_config().hidden_size,  # norms and biases
            **_OFFLOADED[config.learner.offload],
        },
    }
