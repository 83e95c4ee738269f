from __future__ import annotations

import pytest

from common.data.split import base_and_new
from common.errors import DataError


@pytest.mark.parametrize(
    ("labels", "base", "new"),
    [("abcd", "ab", "cd"), ("abcde", "abc", "de"), ("ab", "a", "b"), ("zyx", "zy", "x")],
)
def test_first_half_rounded_up_is_base(labels: str, base: str, new: str) -> None:
    assert base_and_new(list(labels)) == (tuple(base), tuple(new))


@pytest.mark.parametrize("labels", ["", "a", "aba"])
def test_too_few_or_twice_is_refused(labels: str) -> None:
    with pytest.raises(DataError, match="two labels at least"):
        base_and_new(list(labels))
