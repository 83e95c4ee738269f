"""Rules of ours for every pod: its image, resources, memory, secrets, account, priority and network card."""

from __future__ import annotations

from collections.abc import Iterator

from tests.helpers.kuberay import groups, read_cluster
from tests.helpers.kubernetes.reading import list_all_pods, list_workers, of_kind, read_bytes, read_main
from tests.helpers.kubernetes.render import Document, render

SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def check_images(documents: list[Document]) -> Iterator[str]:
    """Yield the images that name no version."""
    for name, pod in list_all_pods(documents):
        for container in pod["spec"]["containers"]:
            image = container["image"]
            tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in image and tag in ("", "latest"):
                yield f"image: {name} runs {image}, which names no version"


def check_resources(documents: list[Document]) -> Iterator[str]:
    """Yield where memory, disk and devices are not both asked for and limited."""
    for name, pod in list_all_pods(documents):
        main = pod["spec"]["containers"][0]
        asked, most = main["resources"].get("requests", {}), main["resources"].get("limits", {})
        if not asked.get("memory") or asked["memory"] != most.get("memory"):
            yield f"memory: {name} must ask for what it may use"
        if "ephemeral-storage" not in asked or "ephemeral-storage" not in most:
            yield f"ephemeral-storage: {name} must ask for some and have a limit"
        devices = {key for key in {*asked, *most} if "/" in key}
        if any(asked.get(key) != most.get(key) for key in devices):
            yield f"devices: {name} must ask for as many as it may use"


def check_shared_memory(documents: list[Document]) -> Iterator[str]:
    """Yield where /dev/shm does not hold Ray's object store, or a volume stands in the operator's place."""
    for document in of_kind(documents, "RayJob", "RayCluster"):
        for name, group in groups(document):
            volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
            mounted = {one["mountPath"]: volumes[one["name"]] for one in read_main(group)["volumeMounts"]}
            shm = mounted.get("/dev/shm", {}).get("emptyDir", {})
            store = int(group["rayStartParams"]["object-store-memory"])
            limit = read_bytes(read_main(group)["resources"]["limits"]["memory"])
            if shm.get("medium") != "Memory":
                yield f"shared memory: {name} has no /dev/shm in memory"
            elif not store < read_bytes(shm["sizeLimit"]) <= limit / 2:
                yield f"shared memory: {name} must hold object store < /dev/shm <= half of its memory"
            if "/tmp/ray" in mounted:
                yield f"volumes: {name} mounts /tmp/ray, where the operator puts the logs"


def check_secrets(documents: list[Document]) -> Iterator[str]:
    """Yield secrets that are written down, and those without which no pod would start."""
    for name, pod in list_all_pods(documents):
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in SECRET_WORDS) and "value" in variable:
                    yield f"secrets: {name} has {variable['name']} written down"
            if any(not source["secretRef"].get("optional") for source in container.get("envFrom", [])):
                yield f"secrets: {name} cannot start without tokens that a run may not need"
    for job in of_kind(documents, "RayJob"):
        if "runtimeEnvYAML" in job["spec"]:
            yield "secrets: the dashboard shows runtimeEnvYAML"


def check_accounts(documents: list[Document]) -> Iterator[str]:
    """Yield pods with a token for the API server that they do not need."""
    ours = {one["metadata"]["name"]: one for one in of_kind(documents, "ServiceAccount")}
    scales = any(read_cluster(one).get("enableInTreeAutoscaling") for one in of_kind(documents, "RayJob", "RayCluster"))
    for name, pod in list_all_pods(documents):
        if name == "head" and scales:
            continue  # the operator's account: the autoscaler beside it asks the API server
        if pod["spec"].get("automountServiceAccountToken") is not False:
            yield f"service account: {name} holds a token it does not need"
        if pod["spec"].get("serviceAccountName") not in ours:
            yield f"service account: {name} names one that is not here"


def check_priorities(documents: list[Document]) -> Iterator[str]:
    """Yield priority classes that an administrator would not have made."""
    known = {one["metadata"]["name"] for one in render("cluster") if one["kind"] == "PriorityClass"}
    for document in of_kind(documents, "RayJob", "RayCluster"):
        for name, group in groups(document):
            if group["template"]["spec"].get("priorityClassName") not in known:
                yield f"priority: {name} names a class that is not in deploy/kubernetes/cluster"


def check_nccl(documents: list[Document]) -> Iterator[str]:
    """Yield where NCCL is not told its network."""
    for document in of_kind(documents, "RayJob", "RayCluster"):
        for name, group in list_workers(document):
            settings = {one["name"]: one.get("value") for one in read_main(group).get("env", [])}
            rdma = any(key.startswith("rdma/") for key in read_main(group)["resources"]["limits"])
            if "NCCL_SOCKET_IFNAME" not in settings:
                yield f"NCCL: {name} is not told its interface"
            if rdma is not (settings.get("NCCL_IB_DISABLE") == "0"):
                yield f"NCCL: {name} has InfiniBand and does not use it, or the reverse"
