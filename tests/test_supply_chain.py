"""Nothing is installed unchecked: every install that a tracked file asks for, read out of all of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTALLERS = re.compile(
    r"\b(pip3?|uv|uvx|pipx|conda|mamba|npm|npx|cargo|gem|go) (pip )?(install|sync|add|download)\b|\beasy_install\b"
    r"|\b(curl|wget)\b|\bapt(-get)? (-\S+ )*install\b"
)
# apt checks every package against keys of the distribution; a checkout installs itself without fetching anything.
CHECKED = re.compile(r"--require-hashes|\bapt-get install |\bpip install .*--no-build-isolation -e ")


def tracked() -> dict[str, str]:
    """Every text file that git would commit, by its path, continued lines joined."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    paths = [ROOT / name for name in done.stdout.splitlines()]
    found = {}
    for path in paths:
        if path.is_file() and path != Path(__file__):
            found[str(path.relative_to(ROOT))] = path.read_text(errors="ignore").replace("\\\n", " ")
    return found


def find_unchecked(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if INSTALLERS.search(line) and not CHECKED.search(line)]


def test_every_install_is_checked() -> None:
    strays = {name: lines for name, text in tracked().items() if (lines := find_unchecked(text))}
    assert strays == {}


@pytest.mark.parametrize(
    "line",
    [
        "RUN pip install flash-attn",
        "    .venv/bin/pip install -r requirements-gpu.lock",
        "python -m pip install -U pip",
        "uv pip install torch --torch-backend cpu",
        "curl -LsSf https://example.org/install.sh | sh",
        "npm install -g something",
    ],
)
def test_an_unchecked_install_would_be_found(line: str) -> None:
    assert find_unchecked(line)


def test_actions_are_named_by_their_commit() -> None:
    for name, text in tracked().items():
        if name.startswith(".github/workflows/"):
            used = re.findall(r"^\s*-?\s*uses:\s*(\S+)", text, re.MULTILINE)
            assert used
            assert [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []


def test_the_image_is_built_by_no_frontend_from_elsewhere() -> None:
    assert not re.search(r"^#\s*syntax\s*=", tracked()["deploy/Dockerfile"], re.MULTILINE)
