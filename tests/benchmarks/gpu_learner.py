"""The learner on a GPU: a random model of Qwen2-VL-2B's exact shape in bfloat16, a group of G = 8 over a prompt of 312
tokens, forward and backward, shared in every way of attending there is, against naive rows.

Needs CUDA, torch from 2.11 on with torchvision, transformers and pydantic; nothing else that Rollcall needs. A row is
printed as soon as it is measured: one that fails costs no other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

from common.types import ScoredGroup
from tests.benchmarks import cells, w1
from tests.benchmarks.cells import Cell
from tests.benchmarks.report import best, emit, table

if TYPE_CHECKING:
    from torch import Tensor

CELLS = (Cell(8, 312, 8), Cell(8, 312, 90))
WAYS = ("sdpa", "flash", "flex")
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}  # dense bfloat16 FLOP/s
TEXT: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
    "bos_token_id": None,
}
VISION: dict[str, Any] = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--repeats", type=int, default=10)
    made.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        print("gpu_learner needs a CUDA device, and there is none here", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name()
    peak = next((rate for name, rate in PEAK.items() if name in device), None)
    model = build()
    groups = {cell: cells.group(cell) for cell in CELLS}
    lend_grouped_queries()
    found: dict[str, dict[str, Any]] = {}
    failed = False
    for way in ("naive", *(way for way in WAYS if way in arguments.ways)):  # sdpa first: it undoes no other
        for cell, scored in groups.items():
            name = f"{cell} {way}"
            needed = cells.needed(model.config, [scored])
            try:
                work = prepare(model, way, scored)
                found[name] = measure(model, work, cell, needed, peak, arguments.repeats)
                print(f"{name}: {json.dumps(found[name])}", flush=True)
            except Exception as error:  # noqa: BLE001  # whatever a GPU that nobody has tried says
                failed = True
                print(f"{name}: failed: {type(error).__name__}: {error}", flush=True)
                model.zero_grad(set_to_none=True)
    speedup = {
        name: naive["seconds"] / one["seconds"]
        for name, one in found.items()
        if (naive := found.get(f"{name.rpartition(' ')[0]} naive"))
    }
    columns = ("seconds", "completions_per_s", "mfu", "peak_gib")
    print(
        table(["", *columns, "v naive"], [[n, *(one[c] for c in columns), speedup.get(n)] for n, one in found.items()])
    )
    emit("gpu_learner", {"device": device, "cells": found, "speedup": speedup})
    return int(failed)


def build() -> Any:
    """Qwen2-VL-2B with random weights, its special tokens where W1's tokenizer has them."""
    import torch
    import transformers

    from learner.embedded.tokenizer import token_ids

    config = transformers.Qwen2VLConfig(
        text_config=TEXT, vision_config=VISION, tie_word_embeddings=True, **token_ids(w1.processor().tokenizer)
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        made: Any = transformers.AutoModelForImageTextToText.from_config(
            config, trust_remote_code=False, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return made.train()


def measure(
    model: Any, work: Callable[[], None], cell: Cell, needed: int, peak: float | None, repeats: int
) -> dict[str, float | None]:
    """Seconds of the fastest pass, completions a second, share of the device's peak that the needed FLOPs are, and
    memory at its highest over weights and gradients."""
    import torch

    def once() -> None:
        work()
        torch.cuda.synchronize()

    for _ in range(3):
        once()
    held = 2 * sum(one.numel() * one.element_size() for one in model.parameters())
    torch.cuda.reset_peak_memory_stats()
    took = best(once, repeats=repeats)
    high = torch.cuda.max_memory_allocated() - held
    model.zero_grad(set_to_none=True)
    return {
        "seconds": took,
        "completions_per_s": cell.g / took,
        "mfu": needed / took / peak if peak else None,
        "peak_gib": high / 2**30,
    }


def prepare(model: Any, way: str, scored: ScoredGroup) -> Callable[[], None]:
    """Make the model attend in `way` and return the pass to measure. Raises ModelError where it cannot."""
    from learner.model.attention import install

    if way == "naive":
        return partial(cells.naive, model, scored)
    install(model, way, cuda=True)
    return partial(cells.shared, model, [scored])


def lend_grouped_queries() -> None:
    """Make torch's `varlen_attn` take `enable_gqa`, which it does not before 2.12: by repeating keys and values."""
    varlen: Any = importlib.import_module("torch.nn.attention.varlen")
    attend = varlen.varlen_attn
    if "enable_gqa" in signature(attend).parameters:
        return

    def attend_grouped(q: Tensor, k: Tensor, v: Tensor, *rest: Any, enable_gqa: bool = False, **options: Any) -> Any:
        if enable_gqa:
            k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
        return attend(q, k, v, *rest, **options)

    varlen.varlen_attn = attend_grouped


if __name__ == "__main__":
    raise SystemExit(main())
