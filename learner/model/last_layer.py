"""The last layer of the language model, only for the tokens whose state anybody reads.

All that its other tokens give are keys and values. What follows those, the largest part of a layer, feeds nothing:
their states are left as they came in, and the head reads none of them. Same numbers, less work: with long prompts and
short answers nearly a whole layer's, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = "read_rows"  # keyword of the model's forward: (rows,) int64, rising places in S; without it all are read
TOKENWISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # parts of a layer that read one token at a time


def shorten(model: Any) -> None:
    """Make the last layer of `model` heed the keyword. A checkpointed layer sees it again when it is recomputed."""
    layer = model.get_decoder().layers[-1]
    if getattr(layer, "_shortened", False):
        return
    layer._shortened = True  # noqa: SLF001
    chosen, own = _Chosen(), dict(layer.named_modules())
    layer.register_forward_pre_hook(chosen.begin, with_kwargs=True)
    layer.register_forward_hook(chosen.end, always_call=True)
    for part in (own[name] for name in TOKENWISE if name in own):
        part.register_forward_pre_hook(chosen.take)
        part.register_forward_hook(chosen.put)


class _Chosen:
    """The parts compute the rows alone and give the others zeros."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._size = 0  # S

    def begin(self, layer: Any, inputs: Any, keywords: dict[str, Any]) -> None:
        self._rows = keywords.get(ROWS)

    def end(self, layer: Any, inputs: Any, output: Any) -> None:
        self._rows = None

    def take(self, part: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._rows is None:
            return None
        (states,) = inputs  # (1, S, width)
        self._size = states.shape[1]
        return (states.index_select(1, self._rows),)

    def put(self, part: Any, inputs: Any, output: Tensor) -> Tensor | None:
        if self._rows is None:
            return None
        whole = output.new_zeros(1, self._size, output.shape[-1])
        return torch.index_copy(whole, 1, self._rows, output)
