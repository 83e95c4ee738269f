"""The last layer of the language model, computed only for the positions that the head reads.

The other positions give keys and values there, and nothing else: their queries, output projection and MLP, the largest
part of a layer, feed nothing. They are skipped. The numbers stay the same. With long prompts and short answers this
saves nearly a whole layer, forward and backward: of a prompt of 312 tokens and four answers of 3, 9 of 320 positions
are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = "read_rows"  # keyword of the model's forward: int64, rising positions; without it all of S are read
TOKENWISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")  # parts of a layer that read one token at a time


def shorten(model: Any) -> None:
    """Make the last layer of `model` obey the keyword ROWS, also where it is checkpointed and recomputed."""
    layer = model.get_decoder().layers[-1]
    if getattr(layer, "_shortened", False):
        return
    layer._shortened = True  # noqa: SLF001
    chosen, own = _ReadRows(), dict(layer.named_modules())
    layer.register_forward_pre_hook(chosen.begin, with_kwargs=True)
    layer.register_forward_hook(chosen.end, always_call=True)
    for part in (own[name] for name in TOKENWISE if name in own):
        part.register_forward_pre_hook(chosen.take)
        part.register_forward_hook(chosen.put)


class _ReadRows:
    """Hooks that make parts of the layer compute the rows that are read, and give zeros for the others."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._size = 0  # S

    def begin(self, layer: Any, inputs: Any, keywords: dict[str, Any]) -> None:
        """Note the rows before the layer runs."""
        self._rows = keywords.get(ROWS)

    def end(self, layer: Any, inputs: Any, output: Any) -> None:
        """Forget them after it."""
        self._rows = None

    def take(self, part: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Hand a part (1, rows, width) in place of (1, S, width) states."""
        if self._rows is None:
            return None
        (states,) = inputs  # (1, S, width)
        self._size = states.shape[1]
        return (states.index_select(1, self._rows),)

    def put(self, part: Any, inputs: Any, output: Tensor) -> Tensor | None:
        """Return the part's output as (1, S, width), zeros where nothing was computed."""
        if self._rows is None:
            return None
        whole = output.new_zeros(1, self._size, output.shape[-1])
        return torch.index_copy(whole, 1, self._rows, output)
