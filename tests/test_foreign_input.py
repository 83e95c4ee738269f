"""What is read of strangers goes through one door each: no call in the tree may load a model, YAML, JSON, a pickle or
run a command in another way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    file.relative_to(ROOT)
    for folder in ("common", "rollout", "learner", "deploy", "tests")
    for file in (ROOT / folder).rglob("*.py")
)
OURS = [file for file in FILES if file.parts[0] != "tests"]
TAKES_TRUST = ("from_pretrained", "from_config", "load_dataset", "LLM", "EngineArgs", "AsyncEngineArgs", "pipeline")


def name_of(node: ast.expr) -> str:
    """`AutoConfig.from_pretrained` of such an expression."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def parse(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def untrusting_loads(tree: ast.Module) -> Iterator[str]:
    """Yield what may load the code of a model or set without a word on trust, or hands such a function on."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        if name_of(node).rpartition(".")[2] not in TAKES_TRUST:
            continue
        call = called.get(id(node))
        if name_of(node).startswith("peft.") or (call is None and name_of(node).endswith("LLM")):
            continue  # adapters name no code; the class in an annotation
        if call is None or "trust_remote_code" not in {keyword.arg for keyword in call.keywords}:
            yield f"{node.lineno}: {name_of(node)}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_load_of_a_model_says_whether_its_code_is_trusted(file: Path) -> None:
    assert list(untrusting_loads(parse(file))) == []


@pytest.mark.parametrize("file", OURS, ids=str)
def test_only_the_configuration_may_trust(file: Path) -> None:
    """`trust_remote_code` is False, or what `model.trust_remote_code` says."""
    said = [
        name_of(keyword.value) or ast.unparse(keyword.value)
        for node in ast.walk(parse(file))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code"
    ]
    assert all(one == "False" or one.endswith(("model.trust_remote_code", "spec.trust_remote_code")) for one in said)


def test_the_search_finds_what_it_looks_for() -> None:
    source = (
        "A.from_pretrained(x)\nload(A.from_pretrained)\nLLM(model=x)\nB.from_pretrained(x, trust_remote_code=False)"
    )
    assert list(untrusting_loads(ast.parse(source))) == [
        "1: A.from_pretrained",
        "2: A.from_pretrained",
        "3: LLM",
    ]
