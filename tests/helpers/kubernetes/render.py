"""What `kubectl apply -k` would send, rendered by the real kustomize."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
OVERLAYS = sorted(path.parent.name for path in FOLDER.glob("overlays/*/kustomization.yaml"))
RUNS = ["base", *(f"overlays/{name}" for name in OVERLAYS)]  # all that starts something
Document = dict[str, Any]


def render(folder: str | Path) -> list[Document]:
    """Return the documents of a folder with a kustomization, in kustomize's order; each call returns new ones.

    Args:
        folder: below deploy/kubernetes, or an absolute path.
    """
    return copy.deepcopy(_render(FOLDER / folder))


@cache
def _render(folder: Path) -> list[Document]:
    done = subprocess.run([KUBECTL, "kustomize", folder], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def find(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """Return the one document of a kind, or of a kind and a name."""
    found = [one for one in documents if one["kind"] == kind and (name is None or one["metadata"]["name"] == name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def put(document: Document, path: str, value: Any) -> None:
    """Set `a.b.0.c` to a value; None takes the field away. A dot within a key is written as two."""
    *parents, last = (part.replace("\0", ".") for part in path.replace("..", "\0").split("."))
    node: Any = document
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if isinstance(node, list):
        node[int(last) :] = node[int(last) + 1 :] if value is None else [value, *node[int(last) + 1 :]]
    elif value is None:
        del node[last]
    else:
        node[last] = value
