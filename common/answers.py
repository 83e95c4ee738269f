"""Is this answer right? The one implementation, for rewards and evaluation alike.

Labels are text: never parsed as maths, or "BAE 146-200" would equal "BAE 146-300". Both sides are NFC-normalised.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

Mode = Literal["no_think", "think"]
Variant = Literal["strict", "lenient"]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THOUGHT_THEN_ANSWER = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", re.DOTALL)


def is_right(completion: str, label: str, *, mode: Mode, variant: Variant = "strict") -> bool:
    """Whether the completion gives the label.

    strict: no-think, the whole completion equals the label, case and spaces included; think, the one answer equals it,
    stripped and in any case. lenient (the seed's evaluation): the label occurs in the first answer block, else in the
    whole completion, in any case, with `_` read as a space: "tiger shark" passes for "tiger".
    """
    return _VARIANTS[variant](completion, label, mode)


def is_valid(completion: str, mode: Mode, candidates: Sequence[str] | None = None) -> bool:
    """Whether the completion strictly gives one of the candidates; with none known, whether it is well formed."""
    if not candidates:
        return is_well_formed(completion, mode)
    return any(is_right(completion, candidate, mode=mode) for candidate in candidates)


def extract(completion: str, mode: Mode) -> str | None:
    """The answer given: no-think, the completion as it is; think, the text of the one answer block, stripped.

    A think completion without answer tags is its own answer, as in the seed; one with more than a single block, or a
    broken one, gives none, so that naming many classes wins nothing.
    """
    if mode == "no_think":
        return completion
    counts = completion.count("<answer>"), completion.count("</answer>")
    if counts == (0, 0):
        return completion.strip()
    block = _ANSWER.search(completion) if counts == (1, 1) else None
    return block[1].strip() if block else None


def is_well_formed(completion: str, mode: Mode) -> bool:
    """No-think: one line, not blank, without tags. Think: one thought, then one answer, neither blank, nothing else."""
    if mode == "no_think":
        one_line = completion.splitlines() == [completion] and bool(completion.strip())
        return one_line and not any(tag in completion for tag in TAGS)
    if any(completion.count(tag) != 1 for tag in TAGS):
        return False
    blocks = _THOUGHT_THEN_ANSWER.fullmatch(completion)
    return blocks is not None and all(text.strip() for text in blocks.groups())


def _strict(completion: str, label: str, mode: Mode) -> bool:
    answer = extract(completion, mode)
    if answer is None:
        return False
    return _nfc(answer) == _nfc(label) if mode == "no_think" else _caseless(answer) == _caseless(label)


def _lenient(completion: str, label: str, mode: Mode) -> bool:
    block = _ANSWER.search(completion)
    answer = block[1] if block else completion
    return _caseless(label.replace("_", " ")) in _caseless(answer.replace("_", " "))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _caseless(text: str) -> str:
    return _nfc(_nfc(text).strip().casefold())  # again, because case folding can undo the normal form


_VARIANTS: Mapping[Variant, Callable[[str, str, Mode], bool]] = {"strict": _strict, "lenient": _lenient}
