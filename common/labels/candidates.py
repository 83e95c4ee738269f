"""The class list or the options that a question offers, read from its text and written into it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from common.errors import DataError, as_utf8

_LIST = re.compile(r"\blist\s*\[(.+?)\]", re.DOTALL)
_MARK = re.compile(r"</?(?:think|answer|reason|image|video)\s*>|<\|\w+\|>", re.IGNORECASE)
_OPTION = re.compile(r"^[ \t]*(\([A-Z]\)|[A-Z](?=[.):]))[.):]?[ \t]+(\S.*)$", re.MULTILINE)


def candidates(problem: str) -> list[str] | None:
    """Return the labels of the question's list, `… choose one from list [ a, b, c].`, or the letters of its options.

    Options stand on lines of their own, from A on without a gap: `(A) left` gives `(A)`, `A. left` gives `A`. Return
    None where the question has neither, and is open-ended.
    """
    return read_list(problem) or [*options(problem)] or None


def options(problem: str) -> dict[str, str]:
    """Return the text of each option of a multiple choice question: `{"(A)": "left", "(B)": "right"}`."""
    found: list[tuple[str, str]] = _OPTION.findall(problem)
    letters = [letter.strip("()") for letter, _ in found]
    in_turn = [chr(ord("A") + place) for place in range(len(found))]
    return {letter: text.strip() for letter, text in found} if len(found) > 1 and letters == in_turn else {}


def read_list(problem: str) -> list[str] | None:
    """Return the labels of the question's list; None where it has none, though it may have options."""
    found = _LIST.search(problem)
    return [item.strip() for item in found[1].split(",")] if found else None


def with_candidates(question: str, labels: Iterable[str]) -> str:
    """Return the question followed by its class list, in CLS-RL's words."""
    return f"{question}\nPlease choose one from list [ {', '.join(labels)}]."


def check_question(question: str) -> None:
    """Raise DataError for a question that no list of classes can follow, or that is no plain text."""
    marks = _MARK.findall(question)
    if read_list(question):
        why, remedy = "a list of its own", "leave the list out: that of the classes is added"
    elif options(question):
        why, remedy = "options of its own", "leave the options out: the list of the classes is added"
    elif marks:
        why, remedy = f"the mark {marks[0]}", "leave it out: pictures and the form of the answer are added"
    elif candidates(with_candidates(question, ["a", "b"])) != ["a", "b"]:
        why, remedy = "the beginning of a list", "leave `list [` out: the list of the classes is added"
    elif as_utf8(question) != question:
        why, remedy = "letters that are not UTF-8", "write it in UTF-8"
    else:
        return
    raise DataError(f"the question holds {why}", got=repr(question), remedy=remedy)


def replace_list(problem: str, labels: Iterable[str]) -> str:
    """Return the question with other labels in its list, and every other character as it was."""
    found = _LIST.search(problem)
    if found is None:
        return problem
    before, after = (len(found[1]) - len(found[1].lstrip()), len(found[1].rstrip()))
    return f"{problem[: found.start(1) + before]}{', '.join(labels)}{problem[found.start(1) + after :]}"


def breaks_list(label: str) -> bool:
    """Whether a list that holds the label cannot be read back: commas separate labels, a bracket ends the list."""
    return candidates(with_candidates("", [label])) != [label]
