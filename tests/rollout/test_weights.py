"""What an engine makes of a manifest, without an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray

from common.checksum import checksum
from common.errors import BrokenEngineError, EngineError
from common.types import BucketKind, WeightBucket, WeightEntry, WeightManifest
from rollout.weights import WeightReceiver

STORE = {"a": [np.arange(24, dtype=np.uint8)], "b": [np.arange(8, dtype=np.uint8)]}


def bucket(payload: str, kind: BucketKind = "changing", *, damage: int = 0) -> WeightBucket:
    arrays = STORE[payload]
    entries = tuple(
        WeightEntry(name=f"{payload}{start}", dtype="float32", shape=(2,), index=0, start=start)
        for start in range(0, len(arrays[0]), 8)
    )
    return WeightBucket(entries=entries, xxh3=checksum(arrays) ^ damage, payload=payload, kind=kind)


def manifest(*buckets: WeightBucket) -> WeightManifest:
    return WeightManifest(version=3, buckets=buckets, vision_unchanged=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The payloads that were asked of the store."""
    seen: list[str] = []

    def get(payloads: list[str], *, timeout: float) -> list[Any]:
        seen.extend(payloads)
        return [STORE[payload] for payload in payloads]

    monkeypatch.setattr(ray, "get", get)
    return seen


def test_tensors_are_parts_of_arrays(fetched: list[str]) -> None:
    found = dict(WeightReceiver().receive(manifest(bucket("a")), towers=True).tensors)
    assert list(found) == ["a0", "a8", "a16"]
    assert found["a8"].numpy().tobytes() == bytes(range(8, 16))
    assert np.shares_memory(found["a8"].numpy(), STORE["a"][0])


def test_what_is_fixed_comes_once_and_towers_only_when_asked(fetched: list[str]) -> None:
    receiver, sent = WeightReceiver(), manifest(bucket("a"), bucket("b", "fixed"))
    first, second = receiver.receive(sent, towers=True), receiver.receive(sent, towers=True)
    assert [name for name, _ in first.tensors] == [name for name, _ in second.tensors] == ["a0", "a8", "a16", "b0"]
    assert (first.unchanged, second.unchanged) == (frozenset(), frozenset({"b0"}))
    assert fetched == ["a", "b", "a"]
    assert receiver.receive(manifest(bucket("a", "towers")), towers=False).tensors == []


def test_damaged_bytes_are_refused(fetched: list[str]) -> None:
    with pytest.raises(EngineError, match="arrived damaged"):
        WeightReceiver().receive(manifest(bucket("a", damage=1)), towers=True)


def test_an_engine_that_gets_no_bytes_is_one_to_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an error that stops the run: see `rollout.fleet.losses.explain_loss`."""

    def late(payloads: list[str], *, timeout: float) -> None:
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(ray, "get", late)
    with pytest.raises(BrokenEngineError, match="do not reach an engine"):
        WeightReceiver().receive(manifest(bucket("a")), towers=True)
