"""`deploy/Dockerfile`, read and not built: base named, packages hashed, no root, all the job needs inside."""

from __future__ import annotations

import re

from tests.helpers.kuberay import ROOT

TEXT = (ROOT / "deploy/Dockerfile").read_text()
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
STAGES = [line.split()[1:] for line in LINES if line.startswith("FROM ")]


def test_the_base_must_be_named_by_whoever_builds() -> None:
    assert LINES[0] == "ARG BASE", "no default: a tag moves and a digest must be somebody's choice"
    assert {stage[0] for stage in STAGES} == {"${BASE}"}
    assert [stage[2] for stage in STAGES if len(stage) == 3] == ["build"]


def test_packages_are_installed_by_the_set_up_from_all_that_it_reads() -> None:
    """It checks every file, and takes the locks, the cure, itself and what pyproject names as the readme."""
    (build,) = (line for line in LINES if "setup.py" in line)
    assert build == "RUN python3.11 deploy/local/setup.py ${DEVICE} --without-driver"
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
    final = LINES[max(i for i, line in enumerate(LINES) if line.startswith("FROM ")) :]
    copied = {line.split()[1] for line in final if line.startswith("COPY ") and "--from" not in line}
    assert copied == {"common", "rollout", "learner", "deploy/recipes"}
    assert all((ROOT / folder).is_dir() for folder in copied)


def test_the_checkouts_own_environment_stays_out() -> None:
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
