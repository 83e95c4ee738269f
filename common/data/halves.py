"""Base and new classes, as CoOp splits them for generalisation to classes never trained on."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import DataError


def base_and_new(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The first half of the labels, rounded up, and the rest.

    Source: Zhou et al. 2022, Conditional Prompt Learning for Vision-Language Models (arXiv:2203.05557), section 4.1.

    Args:
        labels: every label once, in the order of their ids; image folders and files without ids sort them.

    Raises:
        DataError: fewer than two labels, or one given twice.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise DataError(
            "base and new classes need two labels at least, each named once",
            got=", ".join(labels[:8]) or "no labels",
            remedy="give a data set of more classes",
        )
    half = -(-len(labels) // 2)
    return tuple(labels[:half]), tuple(labels[half:])
