"""LoRA through PEFT: adapters on linear layers. The model without them is the reference; merged, they are published.

Adapters are put into the Hugging Face model itself, so the rest of the learner works as without. There is no dropout:
it would make learner and engine two policies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config.schema import LoraConfig
from common.storage.output import follow_umask
from learner.model.load import find_language_prefix

NAME = "default"  # of the adapter inside PEFT's layers


def add_adapters(model: Any, config: LoraConfig) -> dict[str, Any]:
    """Give `model` adapters, the only parameters that will train, and return what `find_adapters` does.

    They start as no change at all: the second factor is zero.
    """
    import peft

    peft.inject_adapter_in_model(_peft_config(model, config), model)
    return find_adapters(model)


def find_adapters(model: torch.nn.Module) -> dict[str, Any]:
    """Return PEFT's layers by the name that their weight has in a model without adapters."""
    from peft.tuners.lora import LoraLayer

    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def switch_off_adapters(adapters: Mapping[str, Any]) -> Iterator[None]:
    """Turn the model inside into the reference: the one it was before `add_adapters`, bit for bit."""
    for layer in adapters.values():
        layer._disable_adapters = True  # noqa: SLF001  # `enable_adapters` would turn requires_grad too
    try:
        yield
    finally:
        for layer in adapters.values():
            layer._disable_adapters = False  # noqa: SLF001


def list_factors(layer: Any) -> list[Tensor]:
    """Return A (rank, in) and B (out, rank) of a layer, which add scaling * B A to its weight."""
    return [layer.lora_A[NAME].weight, layer.lora_B[NAME].weight]


def merge(weight: Tensor, layer: Any) -> Tensor:
    """Return a new tensor: the weight with its adapter, summed in float32 and rounded once."""
    a, b = (factor.detach().float() for factor in list_factors(layer))
    return torch.addmm(weight.detach().float(), b, a, alpha=layer.scaling[NAME]).to(weight.dtype)


def remove_adapters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without adapters, under the names of a model that has none."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if ".lora_" not in name}


def export_adapter(tensors: Mapping[str, Tensor], model: Any, config: LoraConfig, base: str, folder: Path) -> None:
    """Write the adapter alone, as `PeftModel.from_pretrained(base_model, folder)` and vLLM load it.

    Args:
        tensors: whole adapter tensors under their names in `model`.
        base: folder or hub id of the model they belong to.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": tensor.cpu().contiguous()
        for name, tensor in tensors.items()
    }
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = _peft_config(model, config)
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.save_pretrained(str(folder))
    follow_umask(folder)


def _peft_config(model: Any, config: LoraConfig) -> Any:
    import peft

    return peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, bias="none", target_modules=_targets(model, config)
    )


def _targets(model: Any, config: LoraConfig) -> list[str]:
    """List the linear layers that get adapters: the language model's or all; never the head, which may be tied."""
    language, head = find_language_prefix(model), model.get_output_embeddings()
    names = []
    for name, module in model.named_modules():
        plain = name.replace(".base_layer", "")
        wanted = config.targets == "language_and_vision" or plain.startswith(language)
        if type(module) is torch.nn.Linear and module is not head and wanted and ".lora_" not in name:
            names.append(plain)
    return names
