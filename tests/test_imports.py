"""Who may import whom, read from the source; and what an import of Rollcall brings with it, seen in fresh processes."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "rollout", "learner")
# What every room of common may use; labels are in config, for the modes of answers.
SHARED = {"common", "common.config", "common.storage", "common.telemetry"}
LEARNER = SHARED | {"common.labels", "common.models", "common.data", "learner", "learner.objective"}
# Which room may import which: a room is a package, without those inside it. `learner` holds what its rooms share, and
# the entry points, which alone may import everything.
MAY_IMPORT: dict[str, set[str]] = {
    "common": {"common", "common.storage"},
    "common.storage": {"common", "common.storage"},
    "common.telemetry": {"common.storage", "common.telemetry"},
    "common.config": {"common", "common.config", "common.storage", "common.labels"},
    "common.labels": {"common", "common.labels"},
    "common.models": SHARED | {"common.models", "common.labels", "common.data"},
    "common.data": SHARED
    | {"common.data", "common.data.content", "common.data.formats", "common.labels", "common.models"},
    "common.data.content": SHARED | {"common.data.content", "common.data", "common.data.formats", "common.labels"},
    "common.data.formats": SHARED | {"common.data", "common.data.formats", "common.labels", "common.models"},
    "common.data.build": SHARED
    | {"common.data.build", "common.data", "common.data.content", "common.data.formats", "common.labels"},
    "rollout": SHARED | {"common.models", "rollout", "rollout.rewards", "rollout.exchange"},
    "rollout.exchange": SHARED | {"common.models", "rollout", "rollout.exchange"},
    "rollout.fleet": SHARED | {"rollout", "rollout.fleet", "rollout.exchange"},
    "rollout.rewards": LEARNER - {"learner", "learner.objective"} | {"rollout.rewards"},
    "learner": {"common", "common.config", "learner"},
    "learner.embedded": LEARNER | {"learner.embedded"},
    "learner.evaluation": LEARNER | {"learner.evaluation", "learner.storage"},  # results are files
    "learner.model": LEARNER | {"learner.model"},
    "learner.trainer": LEARNER | {"learner.trainer", "learner.trainer.recovery", "learner.model"},
    "learner.trainer.recovery": LEARNER | {"learner.trainer.recovery"},
    "learner.memory": LEARNER | {"learner.memory", "learner.model", "learner.trainer"},
    "learner.storage": LEARNER | {"learner.storage"},
    "learner.tracking.services": {"common.storage", "learner.tracking.services"},
    "learner.tracking": LEARNER
    | {"learner.tracking.services", "learner.tracking", "learner.storage", "learner.evaluation"},
    "learner.driver.preflight": LEARNER
    | {"learner.driver.preflight", "learner.driver.control", "rollout", "rollout.rewards", "common.data.content"}
    | {f"learner.{room}" for room in ("embedded", "evaluation", "model", "trainer", "storage")},
    "learner.audit": LEARNER | {"learner.audit", "learner.storage", "learner.tracking"},
    "learner.guard": LEARNER | {"learner.guard", "learner.storage", "learner.tracking"},
    "learner.report": LEARNER | {"learner.report", "learner.storage", "learner.tracking", "learner.evaluation"},
    "learner.objective": {"common", "common.config", "learner.objective"},
    "learner.driver.recovery": LEARNER | {"learner.driver.recovery", "learner.driver", "learner.storage"},
    "learner.driver.control": LEARNER
    | {"learner.driver.control", "learner.storage", "learner.tracking", "rollout.fleet"},
    "learner.driver.telemetry": LEARNER
    | {"learner.driver.telemetry", "learner.storage", "learner.tracking", "rollout", "rollout.fleet"},
    "learner.driver.hang": LEARNER | {"learner.driver.hang", "learner.guard"},
    "learner.driver": LEARNER
    | {
        "learner.driver",
        "learner.driver.control",
        "learner.driver.hang",
        "learner.driver.preflight",
        "learner.driver.telemetry",
        "rollout",
        "rollout.fleet",
        "rollout.rewards",
    }
    | {f"learner.{room}" for room in ("evaluation", "guard", "trainer", "storage", "tracking", "report")},
}
DEEPSPEED = {"learner.trainer.zero"}  # imports it at its top, and is itself imported only inside rank processes
VLLM = {"rollout", "rollout.exchange"}  # the rooms, and of the learner the sending half of vLLM's own NCCL transfer
VLLM_SENDER = {"learner.trainer.weights"}
MOST_FILES = 15  # in one folder


def modules(package: str) -> list[str]:
    """Every module below `package`, by its dotted name."""
    found = pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
    return [package, *(module.name for module in found)]


MODULES = frozenset(module for package in PACKAGES for module in modules(package))


def source(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# The pages at the top of `learner`, which open the parts of every room.
ENTRY_POINTS = {
    module for module in MODULES if module.count(".") == 1 and '__name__ == "__main__"' in source(module).read_text()
}


def room(module: str) -> str:
    """The package a module stands in; of a package itself, that package."""
    return module if source(module).name == "__init__.py" else module.rpartition(".")[0]


def imported(module: str) -> Iterator[str]:
    """The dotted names `module` imports anywhere in its source, at its top or not: our own down to the module."""
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def importers(target: str) -> set[str]:
    """Our modules that import the third-party package `target`."""
    return {module for module in MODULES if any(name.split(".")[0] == target for name in imported(module))}


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


def test_every_room_imports_only_what_it_may() -> None:
    strays = [
        f"{module} imports {name}"
        for module in sorted(MODULES - ENTRY_POINTS)
        for name in imported(module)
        if name in MODULES and room(name) not in MAY_IMPORT[room(module)]
    ]
    assert strays == []


def test_the_arrows_have_no_circle() -> None:
    """Neither between the rooms of the learner nor between any two files."""
    graphs = {
        "rooms": {name: others for name, others in MAY_IMPORT.items() if name.startswith("learner.")},
        "files": {module: {name for name in imported(module) if name in MODULES} for module in MODULES},
    }
    for graph in graphs.values():
        sorter = TopologicalSorter({node: others - {node} for node, others in graph.items()})
        sorter.prepare()  # raises CycleError, which names the circle


def test_no_folder_holds_more_than_fifteen_files() -> None:
    counts = Counter(path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    full = {str(folder): count - 1 for folder, count in counts.items() if count - 1 > MOST_FILES}  # less __init__
    assert full == {}


@pytest.mark.parametrize("package", sorted(module for module in MODULES if source(module).name == "__init__.py"))
def test_every_package_says_what_may_come_in(package: str) -> None:
    """One paragraph, in the words of whoever has to decide where a new file goes."""
    text = ast.get_docstring(ast.parse(source(package).read_text())) or ""
    assert len(text) > 60
    assert "\n\n" not in text
    assert "may import" in text or "imports" in text


def test_vllm_and_deepspeed_stay_in_their_rooms() -> None:
    assert {module for module in importers("vllm") if room(module) not in VLLM} <= VLLM_SENDER
    assert importers("deepspeed") <= DEEPSPEED
    assert not importers("flash_attn"), "torch has the same attention, and nobody wants to compile that package"


def test_the_door_opens_without_the_heavy_packages() -> None:
    heavy = {"torch", "transformers", "ray", "datasets", "vllm", "deepspeed"}
    loaded, seconds = loaded_by([*modules("common"), "learner.main"], heavy)
    assert loaded == set()
    assert seconds < 2


@pytest.mark.slow
def test_every_module_imports_without_vllm_and_deepspeed() -> None:
    names = [module for module in sorted(MODULES - DEEPSPEED) if not module.endswith("__main__")]
    loaded, _ = loaded_by(names, {"vllm", "deepspeed"})
    assert loaded == set()
