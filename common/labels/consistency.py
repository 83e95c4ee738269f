"""Whether a thought names the answer that follows it: a measure of thinking, whatever the right label is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from common.labels.answers import NO_ALIASES, Aliases, Mode, extract, find_candidate, normalise_leniently, thought
from common.labels.candidates import candidates, options


def consistency(completion: str, problem: str, *, mode: Mode, aliases: Aliases = NO_ALIASES) -> float | None:
    """Return how far the thought of a completion, or the reason after its answer, names that answer alone.

    It is 1 where the thought names the answer alone, and 0 where it does not name the answer. Where it names n
    candidates, the answer among them, it is 1/n. It is None without a thought, as in a malformed completion.

    "a cat or a dog" with answer "cat" gives 1/2. A name counts as a whole word, in any case, with `_` read as a space;
    "tiger" in "tiger shark" does not count. An alias names its label, and the text of an option its letter. Without a
    class list only the answer can be named.
    """
    said, answer = thought(completion, mode), extract(completion, mode)
    if said is None or answer is None:
        return None
    listed = candidates(problem) or []
    given = find_candidate(completion, listed, mode=mode, aliases=aliases) or answer
    told = options(problem)
    names = {one: [one, *aliases.get(one, ())] for one in (*listed, given)}
    names |= {letter: [letter, text] if letter.startswith("(") else [text] for letter, text in told.items()}
    found = _find_names(said, names)
    return 1 / len(found) if given in found else 0.0


def _find_names(text: str, names: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the candidates with a name in `text`: at every place the one with the longest name that stands there."""
    text = normalise_leniently(text)
    owners = {normalise_leniently(name): one for one, own in names.items() for name in own}
    there = sorted((name for name in owners if name and name in text), key=len, reverse=True)
    if not there:
        return set()
    return {owners[name] for name in re.findall("|".join(map(_whole_word, there)), text)}


def _whole_word(name: str) -> str:
    """Return a pattern for `name` as a whole word; scripts without case, as Chinese, put no space between words."""
    before = r"(?<!\w)" if _separates(name[0]) else ""
    after = r"(?!\w)" if _separates(name[-1]) else ""
    return f"{before}{re.escape(name)}{after}"


def _separates(letter: str) -> bool:
    """Whether the letter is of a script that separates words."""
    return letter.isdigit() or letter.upper() != letter.lower()
