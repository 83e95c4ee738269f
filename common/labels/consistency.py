"""Does a thought say what its answer says? A measure of thinking, whatever the right label is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from common.labels.answers import NO_ALIASES, Aliases, Mode, extract, find_candidate, normalise_leniently, thought
from common.labels.candidates import candidates, options


def consistency(completion: str, problem: str, *, mode: Mode, aliases: Aliases = NO_ALIASES) -> float | None:
    """How far the thought of a completion, or the reason after its answer, names that answer and no other candidate.

    1 where it names the answer alone, 1/n where it names n candidates with the answer among them, 0 where it does not
    name the answer; None where there is no thought, as in a malformed completion. A name counts as a whole word, in any
    case, with `_` read as a space; inside a longer name, as "tiger" in "tiger shark", it does not. An alias names its
    label, and what an option says names its letter. Without a class list only the answer can be named.
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
    """Those with a name in `text`: at every place the longest name that stands there."""
    text = normalise_leniently(text)
    owners = {normalise_leniently(name): one for one, own in names.items() for name in own}
    there = sorted((name for name in owners if name and name in text), key=len, reverse=True)
    if not there:
        return set()
    return {owners[name] for name in re.findall("|".join(map(_whole_word, there)), text)}


def _whole_word(name: str) -> str:
    """A pattern for `name`, not as part of a word; scripts without case, as the Chinese, put no space between words."""
    before = r"(?<!\w)" if _separates(name[0]) else ""
    after = r"(?!\w)" if _separates(name[-1]) else ""
    return f"{before}{re.escape(name)}{after}"


def _separates(letter: str) -> bool:
    return letter.isdigit() or letter.upper() != letter.lower()
