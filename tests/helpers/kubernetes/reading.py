"""What a manifest says, read for the rules."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from common.config.cli import parse
from common.config.schema import Config
from tests.helpers.kuberay import ROOT, groups
from tests.helpers.kubernetes.pods import list_pods
from tests.helpers.kubernetes.render import Document

IMAGE_ROOT = "/app"  # WORKDIR of deploy/Dockerfile
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def read_config(job: Document) -> Config:
    """Return the configuration of a RayJob's entrypoint, read by our command line with this checkout as the image's."""
    words = shlex.split(job["spec"]["entrypoint"].replace(f"{IMAGE_ROOT}/", f"{ROOT}/"))
    assert words[:3] == ["python", "-m", "learner.main"]
    return parse(words[3:]).config


def read_bytes(quantity: str) -> int:
    """Return the bytes of a quantity as in 16Gi."""
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def count(group: Document, resource: str) -> float:
    """Return how much of a resource one pod of a group asks for."""
    text = str(read_main(group)["resources"]["requests"].get(resource, 0))
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def read_main(group: Document) -> Document:
    """Return the Ray container of a group."""
    main: Document = group["template"]["spec"]["containers"][0]
    return main


def of_kind(documents: list[Document], *kinds: str) -> Iterator[Document]:
    """Yield the documents of some kinds."""
    yield from (one for one in documents if one["kind"] in kinds)


def list_all_pods(documents: list[Document]) -> list[tuple[str, Document]]:
    """Return name and pod of every template of all documents."""
    return [pod for one in documents for pod in list_pods(one)]


def list_workers(document: Document) -> list[tuple[str, Document]]:
    """Return the worker groups by name."""
    return [(name, group) for name, group in groups(document) if name != "head"]


def meets(labels: dict[str, str], wanted: dict[str, str]) -> bool:
    """Return whether labels hold all that are wanted."""
    return wanted.items() <= labels.items()


def read_ports(pod: Document) -> dict[str, Any]:
    """Return the ports of a pod by name."""
    return {port["name"]: port["containerPort"] for one in pod["spec"]["containers"] for port in one.get("ports", [])}
