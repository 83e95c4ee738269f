"""Sizes of an engine on a CPU unless the configuration gives others: engines take them and `--plan` counts them."""

from __future__ import annotations

KV_CACHE_BYTES = 64 << 20
BATCHED_TOKENS = 4096  # of one forward; more where a single prompt with its completion is longer
