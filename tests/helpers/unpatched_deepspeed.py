"""What DeepSpeed does without the patches of `learner.trainer.zero`, as one line of JSON: run as a script."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn
from torch._C._distributed_c10d import HashStore

from tests.helpers.planted import plant_in_torch_file


def raises(call: Any) -> bool:
    try:
        call()
    except (OSError, RuntimeError):
        return True
    return False


class Tied(nn.Module):
    """A frozen weight under two names, as a tied head and its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.head.weight = self.embedding.weight
        self.requires_grad_(False)


def count(owner: Any, name: str) -> list[int]:
    """Count the calls of a function that goes on doing what it does."""
    calls: list[int] = []
    run = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return run(*args, **kwargs)

    setattr(owner, name, counted)
    return calls


def main() -> None:
    built: list[int] = []
    vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: built.append(1)
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)

    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 0}}
    config |= {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}
    model = nn.Linear(3, 1)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    reduced = count(DeepSpeedEngine, "allreduce_bucket")
    engine.backward(engine(torch.ones(1, 3)).sum())

    bare = SimpleNamespace(module=Tied(), random_ltd_enabled=lambda: False)
    facts = {
        "builds an extension": bool(built),
        "averages over one rank": bool(reduced),
        "keeps a frozen tied weight": list(DeepSpeedEngine.module_state_dict(bare, exclude_frozen_parameters=True)),
        "raises on a full disk": raises(lambda: TorchCheckpointEngine().save({"a": torch.zeros(1 << 20)}, "/dev/full")),
        "raises where no script can be copied": raises(
            lambda: DeepSpeedEngine._copy_recovery_script(bare, "/nowhere")  # noqa: SLF001
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        file, marker = Path(folder) / "file", Path(folder) / "marker"
        torch.save({}, file)
        plant_in_torch_file(file, marker)
        TorchCheckpointEngine().load(str(file))
        facts["runs code in a checkpoint"] = marker.exists()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
