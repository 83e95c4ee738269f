"""Whether an answer is right: the one implementation, for rewards and evaluation alike.

Labels are text and never parsed as maths, or "BAE 146-200" would equal "BAE 146-300" (fault 1). Both sides are
normalised to NFC.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

Mode = Literal["no_think", "think", "think_after_answer", "adaptive"]
Variant = Literal["strict", "lenient"]
Aliases = Mapping[str, Sequence[str]]  # label -> other names that count as it

NO_ALIASES: Aliases = MappingProxyType({})
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<reason>", "</reason>")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THOUGHT_FIRST = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", re.DOTALL)
_ANSWER_FIRST = re.compile(r"<answer>(.*?)</answer>\s*<reason>(.*?)</reason>", re.DOTALL)
_SHAPES: Mapping[Mode, tuple[re.Pattern[str], ...]] = {
    "no_think": (),
    "think": (_THOUGHT_FIRST,),
    "think_after_answer": (_ANSWER_FIRST,),
    "adaptive": (_THOUGHT_FIRST, _ANSWER),
}


def is_right(
    completion: str, label: str, *, mode: Mode, variant: Variant = "strict", aliases: Iterable[str] = ()
) -> bool:
    """Whether the completion gives the label, or one of its aliases.

    strict: in no-think the whole completion equals the label, case and spaces included. In other modes the one answer
    (`extract`) equals it, stripped and in any case.

    lenient (CLS-RL's evaluation): the label occurs in the first answer block, or in the whole completion without one.
    Any case will do, and `_` is read as a space. So "tiger shark" passes for "tiger" (fault 2).
    """
    return any(_VARIANTS[variant](completion, name, mode) for name in (label, *aliases))


def find_candidate(
    completion: str, candidates: Iterable[str], *, mode: Mode, aliases: Aliases = NO_ALIASES
) -> str | None:
    """Return the candidate that the completion strictly gives, by its name or an alias; None where it gives none."""
    return next((one for one in candidates if is_right(completion, one, mode=mode, aliases=aliases.get(one, ()))), None)


def extract(completion: str, mode: Mode) -> str | None:
    """Return the answer of a completion; None where there is not exactly one in its place.

    In no-think it is the completion as it is. In other modes it is the text of the one answer block, stripped. Nothing
    may follow that block, or precede it in think-after-answer. So a completion that names many classes wins nothing.
    Adaptive also takes a completion without any tag as a bare answer.
    """
    if mode == "no_think":
        return completion
    if mode == "adaptive" and _has_no_tags(completion):
        return completion.strip()
    if (completion.count("<answer>"), completion.count("</answer>")) != (1, 1):
        return None
    before, _, rest = completion.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    beyond = before if mode == "think_after_answer" else after
    return answer.strip() if closed and not beyond.strip() else None


def thought(completion: str, mode: Mode) -> str | None:
    """Return the text of the thinking or reason block of a well-formed completion; None where there is none."""
    shape = _ANSWER_FIRST if mode == "think_after_answer" else _THOUGHT_FIRST
    if mode == "no_think" or not is_well_formed(completion, mode) or not (blocks := shape.fullmatch(completion)):
        return None
    return blocks[2 if shape is _ANSWER_FIRST else 1]


def is_well_formed(completion: str, mode: Mode) -> bool:
    """Whether the completion is nothing but what its mode asks for, and no part of it is blank.

    No-think: one line without tags. Think: one thought, then one answer. Think-after-answer: one answer, then one
    reason. Adaptive: a thought and an answer, an answer alone, or a line as in no-think.
    """
    if _has_no_tags(completion):
        return mode in ("no_think", "adaptive") and completion.splitlines() == [completion] and bool(completion.strip())
    matches = (shape.fullmatch(completion) for shape in _SHAPES[mode])
    blocks = next((match.groups() for match in matches if match), ())
    return bool(blocks) and all(text.strip() and _has_no_tags(text) for text in blocks)


def choose_closed_set(logprobs: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    """Return the index of the candidate with the highest log-prob, the first of equals: the closed-set variant.

    Args:
        logprobs: (K,) of each candidate as a whole answer.
        lengths: (K,) in tokens; with them the mean log-prob of a token decides. Sums favour short labels, means long
            ones.
    """
    if lengths is None:
        return max(range(len(logprobs)), key=logprobs.__getitem__)
    means = [logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
    return choose_closed_set(means)


def same_name(one: str, other: str) -> bool:
    """Whether two names are the same but for case, Unicode form and the space around them."""
    return caseless(one) == caseless(other)


def caseless(text: str) -> str:
    """Return `text` as names are compared in any case: NFC, case folded, without the space around it."""
    return nfc(nfc(text).strip().casefold())  # again, because case folding can undo the normal form


def normalise(name: str, mode: Mode) -> str:
    """Return a name as the strict metric sees it: labels that are equal here cannot be told apart."""
    return nfc(name) if mode == "no_think" else caseless(name)


def normalise_leniently(text: str) -> str:
    """Return a label or an answer as the lenient metric sees it, which looks for the one in the other."""
    return caseless(text.replace("_", " "))


def _strict(completion: str, label: str, mode: Mode) -> bool:
    answer = extract(completion, mode)
    return answer is not None and normalise(answer, mode) == normalise(label, mode)


def first_answer(completion: str) -> str:
    """Return what CLS-RL's evaluation reads: the first answer block, or the whole completion where there is none."""
    block = _ANSWER.search(completion)
    return block[1] if block else completion


def _lenient(completion: str, label: str, mode: Mode) -> bool:
    return normalise_leniently(label) in normalise_leniently(first_answer(completion))


def _has_no_tags(text: str) -> bool:
    return not any(tag in text for tag in TAGS)


def nfc(text: str) -> str:
    """Return `text` in Unicode form NFC, in which an accented letter is one character."""
    return unicodedata.normalize("NFC", text)


_VARIANTS: Mapping[Variant, Callable[[str, str, Mode], bool]] = {"strict": _strict, "lenient": _lenient}
