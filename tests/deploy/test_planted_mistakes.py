"""Mistakes that people make in manifests, each planted in what kustomize renders and caught by its name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.test_kubernetes import list_errors
from tests.helpers.kubernetes.pods import list_pods, list_violations
from tests.helpers.kubernetes.render import find, put, render

CLUSTER = "spec.rayClusterSpec"
HEAD, LEARNER, ROLLOUT = (
    f"{CLUSTER}.{group}" for group in ("headGroupSpec", "workerGroupSpecs.0", "workerGroupSpecs.1")
)
POD, MAIN = "template.spec", "template.spec.containers.0"
JOB, KUEUE, SPOT = "base/RayJob", "overlays/kueue/RayJob", "overlays/spot/RayJob"
PREFLIGHT, MONITOR = "overlays/preflight/Job", "overlays/monitoring/PodMonitor"
NETWORK, ACCOUNT = "base/NetworkPolicy", "base/ServiceAccount"
ENTRYPOINT = "python -m learner.main --config /app/deploy/recipes/qwen2vl-2b.yaml rollout.engines=4 "
LABELS = "learner.labels=role=learner rollout.labels=role=rollout"

# what is wrong: where it is planted, the field, its value (None takes it away), and a part of the line that says so
MISTAKES: dict[str, tuple[str, str, Any, str]] = {
    "a misspelt field of the operator's": (JOB, f"{ROLLOUT}.maxReplica", 64, "'maxReplica' was unexpected"),
    "a number where text belongs": (
        JOB,
        f"{HEAD}.rayStartParams",
        {"object-store-memory": 9},
        "9 is not of type 'string'",
    ),
    "a misspelt field of a pod": (JOB, f"{LEARNER}.{POD}.toleration", [], "'toleration' was unexpected"),
    "a misspelt field of a network policy": (NETWORK, "spec.ingres", [], "'ingres' was unexpected"),
    "a head that restarts beside its submitter": (JOB, f"{HEAD}.{POD}.restartPolicy", "Always", "head: restartPolicy"),
    "labels among the parameters of ray start": (
        *(JOB, f"{ROLLOUT}.rayStartParams.labels", "role=rollout"),
        "rollout: labels go to the group's own field",
    ),
    "an idle time without an autoscaler": (KUEUE, f"{ROLLOUT}.idleTimeoutSeconds", 60, "needs the autoscaler"),
    "Kueue and the autoscaler": (KUEUE, f"{CLUSTER}.enableInTreeAutoscaling", True, "Kueue takes no autoscaler"),
    "a learner that can shrink": (JOB, f"{LEARNER}.minReplicas", 0, "of learner, minReplicas = replicas = maxReplicas"),
    "a second number to scale by": (JOB, f"{ROLLOUT}.replicas", 4, "of rollout they are the autoscaler's to set"),
    "a label no selector asks for": (
        JOB,
        f"{ROLLOUT}.labels",
        {"role": "rollouts"},
        "rollout.labels asks for {'role':",
    ),
    "a market that is in no group": (
        SPOT,
        f"{ROLLOUT}.labels.market",
        "cheap",
        "asks for {'role': 'rollout', 'market':",
    ),
    "fewer GPUs than ranks": (
        *(JOB, f"{LEARNER}.{MAIN}.resources.requests.nvidia..com/gpu", "2"),
        "GPUs: the ranks take 4, their group has 2",
    ),
    "GPUs on a node that is not tolerated": (JOB, f"{ROLLOUT}.{POD}.tolerations", [], "does not tolerate their nodes"),
    "no shared memory": (JOB, f"{LEARNER}.{POD}.volumes.1.emptyDir", {}, "learner has no /dev/shm in memory"),
    "an object store larger than it": (
        *(JOB, f"{ROLLOUT}.rayStartParams.object-store-memory", "34359738368"),
        "rollout must hold object store < /dev/shm",
    ),
    "a disk without a limit": (
        *(JOB, f"{LEARNER}.{MAIN}.resources.limits.ephemeral-storage", None),
        "ephemeral-storage: learner must",
    ),
    "a token written down": (
        *(JOB, f"{ROLLOUT}.{MAIN}.env.0", {"name": "HF_TOKEN", "value": "hf_x"}),
        "secrets: rollout has HF_TOKEN written down",
    ),
    "an image without a version": (JOB, f"{LEARNER}.{MAIN}.image", "rollcall:latest", "which names no version"),
    "a typo that is tried again on GPUs": (JOB, "spec.backoffLimit", 3, "a typo would ask for all GPUs again"),
    "a preflight that repeats a refusal": (PREFLIGHT, "spec.podFailurePolicy", None, "would repeat a refusal"),
    "a run that starts from zero": (
        JOB,
        "spec.entrypoint",
        f"{ENTRYPOINT} run_dir=/shared/x {LABELS}",
        "resume: a lost",
    ),
    "a run folder that goes with its pod": (
        *(JOB, "spec.entrypoint", f"{ENTRYPOINT} run_dir=/tmp/x resume=auto {LABELS}"),
        "run_dir: it must outlive the pods",
    ),
    "shell syntax in the entrypoint": (JOB, "spec.entrypoint", f"{ENTRYPOINT} && echo done", "words only"),
    "a budget that guards nothing": (
        *("base/PodDisruptionBudget/rollcall-head", "spec.selector.matchLabels.app..kubernetes..io/component", "heads"),
        "rollcall-head guards no pod",
    ),
    "a budget that no controller can count": (
        *("base/PodDisruptionBudget/rollcall-learner", "spec", {"maxUnavailable": 0}),
        "needs minAvailable",
    ),
    "a pod outside the network policy": (
        *(JOB, f"{ROLLOUT}.template.metadata.labels", {"app.kubernetes.io/component": "rollout"}),
        "no policy covers rollout",
    ),
    "a network without names": (NETWORK, "spec.egress.1", None, "network: no DNS"),
    "a network that NCCL cannot cross": (
        *(NETWORK, "spec.ingress.0.ports", [{"port": 6379, "protocol": "TCP"}]),
        "ingress between pods of the run needs every port",
    ),
    "a monitor of a port that is not there": (
        *(MONITOR, "spec.podMetricsEndpoints.0.port", "metric"),
        "monitor: no pod has a port metric",
    ),
    "a worker with a key to the API server": (
        *(JOB, f"{ROLLOUT}.{POD}.automountServiceAccountToken", True),
        "rollout holds a token it does not need",
    ),
    "an account that is not there": (ACCOUNT, "metadata.name", "worker", "learner names one that is not here"),
    "a priority class nobody made": (JOB, f"{HEAD}.{POD}.priorityClassName", "high", "head names a class that is not"),
    "InfiniBand that NCCL leaves aside": (
        *("overlays/infiniband/RayJob", f"{LEARNER}.{MAIN}.env.6.value", "1"),
        "NCCL: learner has InfiniBand and does not use it",
    ),
    "an object in another namespace": (NETWORK, "metadata.namespace", "default", "namespace: all objects in one"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_caught(mistake: str) -> None:
    place, path, value, told = MISTAKES[mistake]
    *folder, kind = place.split("/")
    name = None
    if kind.startswith("rollcall"):
        kind, name = folder.pop(), kind
    documents = render("/".join(folder))
    document = find(documents, kind, name)
    if path == "spec":  # a budget that says the other thing, of the same pods
        value = {**value, "selector": document["spec"]["selector"]}
    put(document, path, value)
    assert any(told in error for error in list_errors(documents)), list_errors(documents)


# what is wrong: where it is planted, the field, its value, the pod it strikes, and the words of the standard
INSECURE: dict[str, tuple[str, str, Any, str, str]] = {
    "the submitter beside the head": ("restricted", "spec.submissionMode", "SidecarMode", "head", "ray-job-submitter"),
    "a submitter without a template": ("restricted", "spec.submitterPodTemplate", None, "submitter", "runAsNonRoot"),
    "an autoscaler of its own mind": (
        *("restricted", f"{CLUSTER}.autoscalerOptions.securityContext", None, "head"),
        "allowPrivilegeEscalation != false (autoscaler)",
    ),
    "a worker as root, and what waits in it": (
        *("restricted", f"{LEARNER}.{MAIN}.securityContext.runAsUser", 0, "learner"),
        "runAsUser=0 (wait-gcs-ready)",
    ),
    "a folder of the node": (
        *("restricted", f"{ROLLOUT}.{POD}.volumes.1", {"name": "shm", "hostPath": {"path": "/dev/shm"}}, "rollout"),
        "hostPath volumes (shm)",
    ),
    "the network of the node": ("restricted", f"{ROLLOUT}.{POD}.hostNetwork", True, "rollout", "host namespaces"),
    "no seccomp profile": (
        *("restricted", f"{HEAD}.{POD}.securityContext.seccompProfile", None, "head"),
        "seccompProfile (ray-head)",
    ),
}


@pytest.mark.parametrize("mistake", INSECURE)
def test_pod_security_refuses(mistake: str) -> None:
    overlay, path, value, pod, told = INSECURE[mistake]
    job = find(render(f"overlays/{overlay}"), "RayJob")
    assert list_violations(dict(list_pods(job))[pod], "restricted") == []
    put(job, path, value)
    found = list_violations(dict(list_pods(job))[pod], "restricted")
    assert any(told in one for one in found), found


def test_there_are_enough_of_them() -> None:
    assert len(MISTAKES) + len(INSECURE) >= 20
