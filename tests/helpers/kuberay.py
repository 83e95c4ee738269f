"""What a KubeRay 1.7 cluster would refuse, as far as one can tell without it: its schema and its operator's rules."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared/kuberay/crds-v1.json.gz"))
RAY_START_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def schema_errors(document: dict[str, Any]) -> list[str]:
    """Where a document leaves the schema of its kind; unknown fields count, nulls do not.

    Raises:
        FileNotFoundError: the schemas are not at `CRDS`.
    """
    schemas = json.loads(gzip.decompress(CRDS.read_bytes()))
    validator = Draft202012Validator(_closed(schemas[document["kind"]]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(_without_nulls(document))]


def _closed(node: Any) -> Any:
    """The schema with objects that admit only what they name, and nothing required that the API server fills in."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    fields = node.get("properties")
    # `properties` may itself be the name of a field: a schema object states its type.
    if node.get("type") == "object" and isinstance(fields, dict):
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
        if isinstance(required := node.get("required"), list):
            closed["required"] = [name for name in required if "default" not in fields.get(name, {})]
    return closed


def _without_nulls(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_nulls(value) for key, value in node.items() if value is not None}
    return [_without_nulls(item) for item in node] if isinstance(node, list) else node


def operator_errors(job: dict[str, Any]) -> Iterator[str]:
    """Rules of the operator that no schema holds, those a RayJob of ours can break."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    name = job["metadata"]["name"]
    if len(name) > 47 or not DNS_LABEL.fullmatch(name):
        yield f"name {name} must be a DNS label of at most 47 characters"
    yield from _deletion_errors(spec)
    if spec.get("submissionMode") == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & spec.keys():
        yield "SidecarMode takes no submitter"
    if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode takes no backoffLimit"
    if cluster.get("authOptions", {}).get("mode") == "token" and _version(cluster.get("rayVersion", "0")) < (2, 52):
        yield "token authentication needs rayVersion 2.52 or later"
    must_not_restart = (
        cluster.get("enableInTreeAutoscaling") and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    )
    for group_name, group in groups(job):
        restart = group["template"]["spec"].get("restartPolicy", "Never")
        if restart != "Never" and (
            must_not_restart or (group_name == "head" and spec.get("submissionMode") == "SidecarMode")
        ):
            yield f"{group_name}: restartPolicy must be Never or unset"
        if group.get("resources") and RAY_START_RESOURCES & group.get("rayStartParams", {}).keys():
            yield f"{group_name}: give resources in one place, resources or rayStartParams"
        if "labels" in group.get("rayStartParams", {}):
            yield f"{group_name}: labels go to the group's own field"
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not low <= group.get("replicas", low) <= high:
            yield f"{group_name}: minReplicas <= replicas <= maxReplicas does not hold"


def _deletion_errors(spec: dict[str, Any]) -> Iterator[str]:
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if rules and shuts_down:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if spec.get("ttlSecondsAfterFinished", 0) and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec["rayClusterSpec"].get("enableInTreeAutoscaling") and any(
        rule["policy"] == "DeleteWorkers" for rule in rules
    ):
        yield "DeleteWorkers does not go with autoscaling"


def groups(job: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Head and worker groups by name."""
    cluster = job["spec"]["rayClusterSpec"]
    return [("head", cluster["headGroupSpec"]), *((g["groupName"], g) for g in cluster.get("workerGroupSpecs", []))]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
