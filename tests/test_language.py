"""One word for one thing, all over the tree."""

from __future__ import annotations

import re

from tests.test_docs import ROOT, sources

# A seed is a number that starts a random generator. The system this one re-founds is CLS-RL, and called that.
CLS_RL_BY_ANOTHER_NAME = re.compile(r"\bthe seed\b|the_seeds|the_seed_(?!alone)|seed_fault", re.IGNORECASE)


def test_only_random_numbers_have_a_seed() -> None:
    """The phrase itself is not used: a random seed is "this seed", "a seed" or "the run's seed"."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        if path.name != "test_language.py"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if CLS_RL_BY_ANOTHER_NAME.search(line)
    ]
    assert not found, "\n".join(found)
