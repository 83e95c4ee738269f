"""`PATH[@SPLIT]`, as `learner.evaluate`, `evaluation.sets` and the linter read it: one table for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.places import split_place


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("some/folder", ("some/folder", None)),
        ("some/folder@test", ("some/folder", "test")),
        ("afdsafas/dtd-4shot-b2n@base_test", ("afdsafas/dtd-4shot-b2n", "base_test")),
        ("embedded:digits@test", ("embedded:digits", "test")),
        ("@new_test", ("", "new_test")),
        ("x@val.v1", ("x", "val.v1")),
        ("file.parquet@val-2", ("file.parquet", "val-2")),
        ("odd@home/folder", ("odd@home/folder", None)),
        ("odd@home/folder@test", ("odd@home/folder", "test")),
        ("a@b@c", ("a@b", "c")),
        ("x@", ("x@", None)),
        ("x@two words", ("x@two words", None)),
        ("", ("", None)),
        ("there@2", ("there@2", None)),
        ("there@2@test", ("there@2", "test")),
        ("~/there@3", ("~/there@3", None)),
        ("set.parquet@v1", ("set.parquet@v1", None)),
    ],
)
def test_path_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, parts: tuple[str, str | None]
) -> None:
    """Folders `there@2`, `~/there@3` and a file `set.parquet@v1` do lie here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("there@2", "there@3"):
        (tmp_path / name).mkdir()
    (tmp_path / "set.parquet@v1").touch()
    assert split_place(text) == parts
