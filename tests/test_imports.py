"""Who may import whom, read from the source; and what an import of Rollcall brings with it, seen in fresh processes."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "rollout", "learner")
# The only ones that know both sides.
ENTRY_POINTS = {f"learner.{name}" for name in ("main", "run", "door", "evaluate", "judging", "probe", "publisher")}
DEEPSPEED = {"learner.zero"}  # imports it at its top, and is itself imported only inside rank processes
VLLM = {
    "rollout.build",
    "rollout.engine",
    "rollout.inputs",
    "rollout.loader",
    "learner.weights",
}  # the last: the sending half of vLLM's own transfer


def modules(package: str) -> list[str]:
    """Every module below `package`, by its dotted name."""
    found = pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
    return [package, *(module.name for module in found)]


def imported(module: str) -> Iterator[str]:
    """The dotted names `module` imports anywhere in its source, at its top or not."""
    path = ROOT / Path(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            yield node.module


def importers(target: str, package: str) -> set[str]:
    """The modules of `package` that import the package `target`."""
    return {module for module in modules(package) if any(name.split(".")[0] == target for name in imported(module))}


def loaded_by(names: list[str], watched: set[str]) -> tuple[set[str], float]:
    """Import `names` in a fresh process; returns which of `watched` that loaded, and its CPU seconds."""
    script = """
import importlib, json, sys, time
names, watched = json.loads(sys.argv[1])
for name in names:
    importlib.import_module(name)
print(json.dumps([[name for name in watched if name in sys.modules], time.process_time()]))
"""
    command = [sys.executable, "-c", script, json.dumps([names, sorted(watched)])]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    loaded, seconds = json.loads(done.stdout.splitlines()[-1])
    return set(loaded), seconds


@pytest.mark.parametrize(("package", "target"), [("common", "rollout"), ("common", "learner"), ("rollout", "learner")])
def test_arrows_point_one_way(package: str, target: str) -> None:
    assert importers(target, package) == set()


def test_only_entry_points_of_the_learner_know_rollouts() -> None:
    assert importers("rollout", "learner") <= ENTRY_POINTS


def test_vllm_and_deepspeed_stay_in_their_few_files() -> None:
    assert {module for package in PACKAGES for module in importers("vllm", package)} <= VLLM
    assert {module for package in PACKAGES for module in importers("deepspeed", package)} <= DEEPSPEED


def test_the_door_opens_without_the_heavy_packages() -> None:
    heavy = {"torch", "transformers", "ray", "datasets", "vllm", "deepspeed"}
    loaded, seconds = loaded_by([*modules("common"), "learner.main"], heavy)
    assert loaded == set()
    assert seconds < 2


def test_every_module_imports_without_vllm_and_deepspeed() -> None:
    names = [module for package in PACKAGES for module in modules(package) if module not in DEEPSPEED]
    loaded, _ = loaded_by(names, {"vllm", "deepspeed"})
    assert loaded == set()


def test_a_model_is_read_without_scikit_learn(digits_model: Path) -> None:
    """transformers brings in what generates for a docstring, and that these: a second of every start."""
    script = """
import sys
from common.config import ModelConfig
from common.processor import load_model_config
print(load_model_config(ModelConfig(path=sys.argv[1])).model_type, "sklearn" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(digits_model)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["qwen2_vl", "False"]
