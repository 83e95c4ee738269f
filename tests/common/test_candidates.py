from __future__ import annotations

import pytest

from common.candidates import candidates, with_candidates


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("What?\nPlease choose one from list [ a, b c, d.e].", ["a", "b c", "d.e"]),
        ("Choose from list [one].", ["one"]),
        (with_candidates("Is [this] it?", ["BAE 146-200", "BAE 146-300"]), ["BAE 146-200", "BAE 146-300"]),
        ("What type of flower is in the photo?", None),
        ("An empty list [].", None),
    ],
)
def test_candidates_are_read_back(problem: str, labels: list[str] | None) -> None:
    assert candidates(problem) == labels
