"""A real Prometheus, on a port of this machine alone, and what its queries ask for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from tests.helpers.jobs import ROOT
from tests.helpers.ports import free_port

MONITORING = ROOT / "deploy/monitoring"
PROGRAM, TOOL = shutil.which("prometheus"), shutil.which("promtool")
_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Prometheus:
    """One that is up."""

    url: str
    process: subprocess.Popen[bytes]

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        """Labels and value of every series that answers now."""
        found = self.get("query", query=query)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]


@contextmanager
def serve(folder: Path, targets: Path) -> Iterator[Prometheus]:
    """Run it on the configuration of deploy/monitoring, which scrapes once a second what the file of targets names."""
    assert PROGRAM is not None
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["file_sd_configs"][0] = {"files": [str(targets)], "refresh_interval": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    words = [PROGRAM, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "console").open("w") as console:
        process = subprocess.Popen(
            [*words, f"--web.listen-address={address}"], stdout=console, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_ready(f"http://{address}/-/ready", process, folder / "console")
        yield Prometheus(f"http://{address}", process)
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], console: Path) -> None:
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(console.read_text())


def list_rules() -> list[dict[str, Any]]:
    """Every rule of deploy/monitoring, with `record` or `alert`."""
    groups = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def list_panels() -> list[tuple[str, str]]:
    """Title and query of every line of every panel."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


@dataclass(frozen=True, slots=True)
class Selector:
    """The series that a query reads."""

    metric: str
    labels: frozenset[str]  # it is selected by
    text: str  # as PromQL


def list_selectors(query: str) -> list[Selector]:
    """What a query reads, in its order. Raises ValueError where it does not parse."""
    found: list[Selector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            labels = frozenset(one.name for one in node.matchers.matchers)
            found.append(Selector(str(node.name), labels, str(node)))

    promql_parser.walk(promql_parser.parse(query), visit)
    return list(dict.fromkeys(found))


def list_labels(query: str) -> set[str]:
    """The labels that a query groups or joins by."""
    clauses = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)
    return {label.strip() for clause in clauses for label in clause.split(",")}
