"""A reference policy that follows the policy: set to it every N steps, or a moving average of it.

Sources: resets, Liu et al. 2025, arXiv:2505.24864; moving average, Rame et al. 2024, arXiv:2406.16768.

Every rank moves what it holds of each tensor: all of it below ZeRO-3, else its partition. Tensors that do not train are
the same in both and stay. A moving average is kept in float32, for in bfloat16 most of its small moves would round to
none: 0.001 of the way from 1 to 1.01 is lost there at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.config.schema import Config
from common.errors import CheckpointError


class MovingReference:
    """Moves the tensors of a reference after those of the policy, and remembers them in checkpoints."""

    def __init__(
        self, policy: Any, reference: Any, config: Config, *, refresh: Callable[[Sequence[Tensor]], None]
    ) -> None:
        """
        Args:
            policy, reference: models of one kind, at the same weights.
            refresh: makes a forward read given parameters anew, whose shares have changed. A collective.
        """
        pairs = zip(policy.parameters(), reference.parameters(), strict=True)
        self._pairs = [(new, old) for new, old in pairs if new.requires_grad]
        self._every, self._decay = config.learner.reference_reset_every, config.learner.reference_ema
        self._refresh = refresh
        shares = [_hold(old) for _, old in self._pairs]
        self._kept = [share.float() for share in shares] if self._decay is not None else shares

    def follow(self, version: int) -> None:
        """Move the reference after the step that made the policy `version`, if it is time. A collective.

        With a decay of 0.9 a weight of 1 in the reference and 2 in the policy becomes 1.1.
        """
        if self._every is not None and version % self._every:
            return
        with torch.no_grad():
            for kept, (new, _) in zip(self._kept, self._pairs, strict=True):
                share = _hold(new).to(kept)
                if self._decay is None:
                    kept.copy_(share)
                else:
                    kept.lerp_(share, 1 - self._decay)
        self._write()

    def state(self) -> dict[str, list[Tensor]]:
        """Return what a checkpoint must hold of this rank."""
        return {"kept": [tensor.detach() for tensor in self._kept]}  # plain: DeepSpeed's partitions carry more

    def restore(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from the state of a checkpoint. A collective. Raises CheckpointError for tensors of another kind."""
        with torch.no_grad():
            for kept, saved in zip(self._kept, state["kept"], strict=True):
                if (kept.shape, kept.dtype) != (saved.shape, saved.dtype):
                    raise CheckpointError(
                        "the reference of the checkpoint is of another kind",
                        got=f"{saved.dtype} of {tuple(saved.shape)} for {kept.dtype} of {tuple(kept.shape)}",
                        remedy="resume with the configuration it was written under",
                    )
                kept.copy_(saved)
        self._write()

    @property
    def nbytes(self) -> int:
        """Bytes of the state of this rank."""
        return sum(tensor.nbytes for tensor in self._kept)

    def _write(self) -> None:
        """Put what is kept into the reference."""
        with torch.no_grad():
            for kept, (_, old) in zip(self._kept, self._pairs, strict=True):
                _hold(old).copy_(kept)
        self._refresh([old for _, old in self._pairs])


def _hold(parameter: Tensor) -> Tensor:
    """Return what this rank holds of a parameter: DeepSpeed's partition of it under ZeRO-3, else all."""
    share: Tensor = getattr(parameter, "ds_tensor", parameter.detach())
    return share
