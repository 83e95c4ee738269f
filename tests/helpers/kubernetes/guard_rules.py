"""Rules of ours for what stands around the pods: namespace, disruption budgets, network policy, monitors."""

from __future__ import annotations

from collections.abc import Iterator

from tests.helpers.kuberay import groups
from tests.helpers.kubernetes.reading import list_all_pods, meets, of_kind, read_ports
from tests.helpers.kubernetes.render import Document

CLUSTER_WIDE = {"Namespace", "PriorityClass"}


def check_namespace(documents: list[Document]) -> Iterator[str]:
    """Yield a word where objects would land in several namespaces."""
    found = {one["metadata"].get("namespace") for one in documents if one["kind"] not in CLUSTER_WIDE}
    if len(found) != 1 or None in found:
        yield f"namespace: all objects in one, not {sorted(map(str, found))}"


def check_budgets(documents: list[Document]) -> Iterator[str]:
    """Yield budgets that guard nothing, and the head or learner that has none."""
    sizes = {
        (name, *sorted(group["template"]["metadata"]["labels"].items())): group.get("replicas", 1)
        for document in of_kind(documents, "RayJob", "RayCluster")
        for name, group in groups(document)
    }
    if not sizes:
        return
    guarded = set()
    for budget in of_kind(documents, "PodDisruptionBudget"):
        wanted, name = budget["spec"]["selector"]["matchLabels"], budget["metadata"]["name"]
        held = {key: size for key, size in sizes.items() if meets(dict(key[1:]), wanted)}
        guarded |= {key[0] for key in held}
        if "maxUnavailable" in budget["spec"]:
            yield f"disruption budget: {name} needs minAvailable, a RayCluster has no scale"
        elif not held:
            yield f"disruption budget: {name} guards no pod"
        elif budget["spec"]["minAvailable"] != sum(held.values()):
            yield f"disruption budget: {name} must keep all {sum(held.values())} of its pods"
    if missing := {"head", "learner"} - guarded:
        yield f"disruption budget: none guards {', '.join(sorted(missing))}"


def check_network(documents: list[Document]) -> Iterator[str]:
    """Yield which pods have no policy, and what a policy leaves open or closes that the run needs."""
    pods, policies = list_all_pods(documents), list(of_kind(documents, "NetworkPolicy"))
    for name, pod in pods:
        if not any(meets(pod["metadata"]["labels"], one["spec"]["podSelector"]["matchLabels"]) for one in policies):
            yield f"network: no policy covers {name}"
    for policy in policies:
        spec = policy["spec"]
        if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"}:
            yield "network: the policy must close both directions"
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            run = [rule for rule in spec[direction] if {"podSelector": spec["podSelector"]} in rule.get(peers, [])]
            if not any("ports" not in rule for rule in run):
                yield f"network: {direction} between pods of the run needs every port, as Ray and NCCL choose theirs"
        if any(not rule.get("from") for rule in spec["ingress"]):
            yield "network: ingress from everywhere"
        yield from _check_ports(spec, [number for _, pod in pods for number in _list_metrics(pod)])


def _list_metrics(pod: Document) -> list[int]:
    return [number for name, number in read_ports(pod).items() if name.endswith("metrics")]


def _check_ports(spec: Document, metrics: list[int]) -> Iterator[str]:
    out = {(port["port"], port["protocol"]) for rule in spec["egress"] for port in rule.get("ports", [])}
    into = {port["port"] for rule in spec["ingress"] for port in rule.get("ports", [])}
    if not {(53, "UDP"), (53, "TCP")} <= out:
        yield "network: no DNS"
    if not {(443, "TCP"), (6443, "TCP")} <= out:
        yield "network: no API server, hub or bucket"
    if 8265 not in into:
        yield "network: the operator cannot reach the dashboard"
    if not set(metrics) <= into:
        yield "network: Prometheus cannot reach the metrics"


def check_monitors(documents: list[Document]) -> Iterator[str]:
    """Yield pods and ports of the run that Prometheus would not find."""
    pods = [pod for name, pod in list_all_pods(documents) if name != "submitter"]
    for monitor in of_kind(documents, "PodMonitor"):
        picked = [pod for pod in pods if meets(pod["metadata"]["labels"], monitor["spec"]["selector"]["matchLabels"])]
        if len(picked) < len(pods):
            yield "monitor: it does not select every pod of the run"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if not any(endpoint["port"] in read_ports(pod) for pod in picked):
                yield f"monitor: no pod has a port {endpoint['port']}"
