"""Partial reward for a label that is near the right one in a tree of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.labels.answers import NO_ALIASES, Aliases, Mode, find_candidate
from common.labels.candidates import candidates
from common.labels.taxonomy import Taxonomy, leaves, similarity


def taxonomy_reward(
    completions: Sequence[str],
    *,
    label: str,
    problem: str,
    mode: Mode,
    taxonomy: Taxonomy,
    aliases: Aliases = NO_ALIASES,
    **columns: Any,
) -> Sequence[float]:
    """Return (G,) how near the strictly given candidate is to the label in the tree `data.taxonomy`.

    It is 1 for the label itself and 0 for what shares no class with it. An answer that the row does not list earns 0,
    so that no class above the candidates can stand for them. Without a list every class with none below it counts.
    """
    known = dict.fromkeys([label, *(candidates(problem) or leaves(taxonomy))])
    given = [find_candidate(completion, known, mode=mode, aliases=aliases) for completion in completions]
    return [0.0 if one is None else similarity(taxonomy, one, label) for one in given]
