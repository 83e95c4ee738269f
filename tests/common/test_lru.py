from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.lru import ByteLRU


def test_the_value_used_longest_ago_goes_first() -> None:
    cache: ByteLRU[str, int] = ByteLRU(10)
    cache.put("a", 1, 5)
    cache.put("b", 2, 5)
    assert cache.get("a") == 1
    cache.put("c", 3, 1)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12))))
def test_never_over_the_limit(puts: list[tuple[int, int]]) -> None:
    cache: ByteLRU[int, int] = ByteLRU(10)
    for key, nbytes in puts:
        cache.put(key, nbytes, nbytes)
    held = [size for key in range(5) if (size := cache.get(key)) is not None]
    assert sum(held) <= 10
