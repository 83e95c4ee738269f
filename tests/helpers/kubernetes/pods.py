"""The pods that come of a document, with what the operator puts into them, and what Pod Security says of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

from tests.helpers.kuberay import groups, read_cluster
from tests.helpers.kubernetes.render import Document

Level = Literal["privileged", "baseline", "restricted"]
LEVELS: tuple[Level, ...] = ("restricted", "baseline", "privileged")
RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}
HARMLESS = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
SMALL = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"cpu": "200m", "memory": "256Mi"}}


def list_pods(document: Document) -> list[tuple[str, Document]]:
    """Return name and pod of every template, as KubeRay 1.7 completes them; none of a kind that has no pods.

    The autoscaler beside the head has the security context of `autoscalerOptions`, the submitter of SidecarMode none,
    the first container of a worker that waits for the head a copy of the worker's.
    """
    if document["kind"] == "Job":
        return [(document["metadata"]["name"], _pod(document["spec"]["template"]))]
    if document["kind"] not in ("RayJob", "RayCluster"):
        return []
    found = [(name, _pod(group["template"])) for name, group in groups(document)]
    for name, pod in found:
        main = pod["spec"]["containers"][0]
        if name == "head":
            pod["spec"]["containers"] += list(_beside_the_head(document, main))
        else:
            pod["spec"].setdefault("initContainers", []).append(_sidecar("wait-gcs-ready", main, main))
    if document["spec"].get("submissionMode") == "K8sJobMode":
        head = found[0][1]["spec"]["containers"][0]
        template = document["spec"].get("submitterPodTemplate")
        default = {"spec": {"containers": [_sidecar("ray-job-submitter", head, {})], "restartPolicy": "Never"}}
        found.append(("submitter", _pod(template or default)))
    return found


def _pod(template: Document) -> Document:
    metadata = {**template.get("metadata", {}), "name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(template["spec"])}


def _beside_the_head(document: Document, head: Document) -> Iterator[Document]:
    cluster = read_cluster(document)
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster.get("autoscalerOptions", {})
        yield {**_sidecar("autoscaler", head, options), "resources": options.get("resources", SMALL)}
    if document["spec"].get("submissionMode") == "SidecarMode":
        yield _sidecar("ray-job-submitter", head, {})


def _sidecar(name: str, main: Document, secured_as: Document) -> Document:
    made = {"name": name, "image": main["image"], "resources": SMALL}
    context = secured_as.get("securityContext")
    return made if context is None else {**made, "securityContext": copy.deepcopy(context)}


def list_violations(pod: Document, level: Level) -> list[str]:
    """Return what Pod Security refuses of a pod at a level, in the words of its standards."""
    if level == "privileged":
        return []
    found = list(_baseline(pod["spec"]))
    return found if level == "baseline" else found + list(_restricted(pod["spec"]))


def find_level(pod: Document) -> Level:
    """Return the strictest level that admits a pod."""
    return next(level for level in LEVELS if not list_violations(pod, level))


def _containers(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        yield container["name"], container, container.get("securityContext", {})


def _baseline(spec: dict[str, Any]) -> Iterator[str]:
    yield from (f"host namespaces ({key})" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    yield from (f"hostPath volumes ({one['name']})" for one in spec.get("volumes", []) if "hostPath" in one)
    for name, container, context in _containers(spec):
        if context.get("privileged"):
            yield f"privileged ({name})"
        if added := set(context.get("capabilities", {}).get("add", [])) - HARMLESS:
            yield f"non-default capabilities ({name} adds {', '.join(sorted(added))})"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"hostPort ({name})"


def _restricted(spec: dict[str, Any]) -> Iterator[str]:
    pod = spec.get("securityContext", {})
    for volume in spec.get("volumes", []):
        if not volume.keys() & RESTRICTED_VOLUMES:
            yield f"restricted volume types ({volume['name']})"
    for name, _, context in _containers(spec):
        capabilities = context.get("capabilities", {})
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"allowPrivilegeEscalation != false ({name})"
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"unrestricted capabilities ({name})"
        if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            yield f"runAsNonRoot != true ({name})"
        if context.get("runAsUser", pod.get("runAsUser", 1)) == 0:
            yield f"runAsUser=0 ({name})"
        if context.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in (
            "RuntimeDefault",
            "Localhost",
        ):
            yield f"seccompProfile ({name})"
