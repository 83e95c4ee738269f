"""What a KubeRay 1.7 cluster would refuse, as far as one can tell without it: its schema and its operator's rules."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared/kuberay/crds-v1.json.gz"))  # the full ones, if at hand
COMPACT = ROOT / "tests/deploy/kuberay-v1.json"  # of the fields we use: tests/helpers/kubernetes/crd_schema.py
RAY_START_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")


def schema_errors(document: dict[str, Any], schemas: dict[str, Any] | None = None) -> list[str]:
    """Return where a document leaves the schema of its kind; unknown fields count, nulls do not.

    Args:
        schemas: by kind; without them those of the fields we use.
    """
    found = json.loads(COMPACT.read_text()) if schemas is None else schemas
    validator = Draft202012Validator(_closed(found[document["kind"]]))
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


def operator_errors(document: dict[str, Any]) -> Iterator[str]:
    """Yield what the operator refuses of a RayJob or RayCluster though the schema does not, where ours can break it."""
    spec, name = document["spec"], document["metadata"]["name"]
    longest = 47 if document["kind"] == "RayJob" else 53
    if len(name) > longest or not DNS_LABEL.fullmatch(name):
        yield f"name {name} must be a DNS label of at most {longest} characters"
    if document["kind"] == "RayJob":
        yield from _job_errors(document)
    cluster = read_cluster(document)
    if cluster.get("authOptions", {}).get("mode") == "token" and _version(cluster.get("rayVersion", "0")) < (2, 52):
        yield "token authentication needs rayVersion 2.52 or later"
    scales = cluster.get("enableInTreeAutoscaling", False)
    version_2 = scales and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    for group_name, group in groups(document):
        restart = group["template"]["spec"].get("restartPolicy", "Never")
        beside_the_head = group_name == "head" and spec.get("submissionMode") == "SidecarMode"
        if restart != "Never" and (version_2 or beside_the_head):
            yield f"{group_name}: restartPolicy must be Never or unset"
        if group.get("resources") and RAY_START_RESOURCES & group.get("rayStartParams", {}).keys():
            yield f"{group_name}: give resources in one place, resources or rayStartParams"
        if "labels" in group.get("rayStartParams", {}):
            yield f"{group_name}: labels go to the group's own field"
        if not all(LABEL_VALUE.fullmatch(value) for value in group.get("labels", {}).values()):
            yield f"{group_name}: labels have values that Kubernetes does not take"
        if group_name != "head":
            yield from _worker_errors(group, scales=scales, version_2=version_2)


def _worker_errors(group: dict[str, Any], *, scales: bool, version_2: bool) -> Iterator[str]:
    name = group["groupName"]
    low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if not low <= group.get("replicas", low) <= high:
        yield f"{name}: minReplicas <= replicas <= maxReplicas does not hold"
    if not scales and not {"minReplicas", "maxReplicas"} <= group.keys():
        yield f"{name}: without the autoscaler both minReplicas and maxReplicas are needed"
    if not version_2 and "idleTimeoutSeconds" in group:
        yield f"{name}: idleTimeoutSeconds needs the autoscaler, version 2"


def _job_errors(job: dict[str, Any]) -> Iterator[str]:
    spec, mode = job["spec"], job["spec"].get("submissionMode", "K8sJobMode")
    yield from _deletion_errors(spec)
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & spec.keys():
        yield "SidecarMode takes no submitter"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode takes no backoffLimit"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", {}):
        elastic = job["metadata"].get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true"
        if spec["rayClusterSpec"].get("enableInTreeAutoscaling") and not elastic:
            yield "Kueue takes no autoscaler"


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


def read_cluster(document: dict[str, Any]) -> dict[str, Any]:
    """Return the cluster's part of a RayJob or a RayCluster."""
    spec: dict[str, Any] = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def groups(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Head and worker groups by name."""
    cluster = read_cluster(document)
    return [("head", cluster["headGroupSpec"]), *((g["groupName"], g) for g in cluster.get("workerGroupSpecs", []))]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
