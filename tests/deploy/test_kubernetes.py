"""`deploy/kubernetes`, offline: rendered by real kustomize, held against schemas, operator, Pod Security, policy."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helpers.kuberay import COMPACT, CRDS, groups, operator_errors, schema_errors
from tests.helpers.kubernetes import crd_schema
from tests.helpers.kubernetes.pods import find_level, list_pods, list_violations
from tests.helpers.kubernetes.policy import list_policy_errors
from tests.helpers.kubernetes.reading import read_config
from tests.helpers.kubernetes.render import FOLDER, RUNS, Document, find, render

KUBERNETES = "1.37"
RAYS, UNKNOWN = "ray.io/v1", "monitoring.coreos.com/v1"  # of the latter no schema is at hand
# What a namespace must admit for a folder; with the submitter beside it, a head is no better than baseline.
LEVELS = {"overlays/restricted": "restricted", "overlays/raycluster": "restricted", "overlays/preflight": "restricted"}
LEVELS["overlays/infiniband"] = "privileged"

needs_crds = pytest.mark.skipif(not CRDS.is_file(), reason=f"no full KubeRay schemas at {CRDS}; set KUBERAY_CRDS")


def list_errors(documents: list[Document]) -> list[str]:
    """Return all that schemas, operator and policy say of the documents of a kustomization."""
    found = []
    for document in documents:
        if document["apiVersion"] == RAYS:
            found += [*schema_errors(document), *operator_errors(document)]
        elif document["apiVersion"] != UNKNOWN:
            found += list_core_errors(document)
        for name, pod in list_pods(document):
            found += [f"{name}: {error}" for error in list_core_errors(pod)]
    return found + list_policy_errors(documents)


def list_core_errors(document: Document) -> list[str]:
    """Return what the schema of a kind of Kubernetes itself says, unknown fields included."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{document['kind']}: {str(error).splitlines()[0]}"]
    return []


@pytest.mark.parametrize("folder", ["cluster", *RUNS])
def test_all_that_is_rendered_would_be_accepted(folder: str) -> None:
    if folder == "cluster":
        assert [error for one in render(folder) for error in list_core_errors(one)] == []
    else:
        assert list_errors(render(folder)) == []


def test_the_claim_beside_the_cluster_is_one() -> None:
    claim = yaml.safe_load((FOLDER / "cluster/shared-claim.yaml").read_text())
    assert list_core_errors(claim) == []
    assert claim["metadata"]["name"] == "rollcall-shared"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "pods on several nodes write to it"


@pytest.mark.parametrize("folder", RUNS)
def test_a_namespace_admits_the_pods_with_what_the_operator_adds(folder: str) -> None:
    wanted = LEVELS.get(folder, "baseline")
    pods = [pod for one in render(folder) for _, pod in list_pods(one)]
    assert [list_violations(pod, wanted) for pod in pods] == [[]] * len(pods)  # type: ignore[arg-type]
    assert wanted in {find_level(pod) for pod in pods}, "no stricter namespace would do"


def test_the_namespace_of_ours_enforces_what_most_folders_meet() -> None:
    labels = find(render("cluster"), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"


def test_the_committed_schema_has_what_the_manifests_use_and_no_more() -> None:
    """Made anew out of itself it is the same: no field too many. That none is missing, the first test here says."""
    committed = json.loads(COMPACT.read_text())
    assert crd_schema.make_compact(committed, crd_schema.list_rays_documents()) == committed
    assert set(committed) == {"RayJob", "RayCluster"}


@needs_crds
def test_the_committed_schema_is_that_of_the_operator() -> None:
    full = crd_schema.read_full(CRDS)
    assert crd_schema.dump(crd_schema.make_compact(full, crd_schema.list_rays_documents())) == COMPACT.read_text()
    assert [schema_errors(one, full) for one in crd_schema.list_rays_documents()] == [[]] * len(
        crd_schema.list_rays_documents()
    )


def test_the_compact_schema_keeps_what_is_used(tmp_path: Path) -> None:
    field: dict[str, Any] = {"type": "object", "required": ["a", "b"], "properties": {}}
    field["properties"] = {
        "a": {"type": "integer"},
        "b": {"default": 1},
        "c": {"type": "array", "items": {"type": "string"}},
    }
    full = {"K": {"type": "object", "properties": {"spec": field, "status": {}}}, "Other": {}}
    path = tmp_path / "crds.json.gz"
    path.write_bytes(gzip.compress(json.dumps(full).encode()))
    kept = crd_schema.make_compact(crd_schema.read_full(path), [{"kind": "K", "spec": {"a": 1, "c": ["x"]}}])
    assert set(kept) == {"K"}
    spec = kept["K"]["properties"]["spec"]
    assert set(kept["K"]["properties"]) == {"spec"}
    assert set(spec["properties"]) == {"a", "c"}
    assert spec["required"] == ["a"]


def test_features_go_together(tmp_path: Path) -> None:
    """An overlay of a user's own: another namespace, an image by digest, and several components."""
    there = tmp_path / "mine"
    there.mkdir()
    components = [
        f"{os.path.relpath(FOLDER, there)}/components/{name}" for name in ("spot", "restricted", "monitoring")
    ]
    image = {"name": "rollcall", "newName": "registry/rollcall", "digest": f"sha256:{'0' * 64}"}
    (there / "kustomization.yaml").write_text(
        yaml.safe_dump({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "vision",
            "resources": [os.path.relpath(FOLDER / "base", there)],
            "components": components,
            "images": [image],
        })
    )  # fmt: skip
    documents = render(there)
    assert list_policy_errors(documents) == []
    pods = list_pods(find(documents, "RayJob"))
    assert {find_level(pod) for _, pod in pods} == {"restricted"}
    images = {one["image"] for _, pod in pods for one in pod["spec"]["containers"]}
    assert images == {f"registry/rollcall@{image['digest']}"}
    assert {one["metadata"]["namespace"] for one in documents} == {"vision"}


def test_the_cluster_for_people_who_submit_is_that_of_the_job() -> None:
    wanted = find(render("base"), "RayJob")["spec"]["rayClusterSpec"]
    assert find(render("overlays/raycluster"), "RayCluster")["spec"] == wanted


def test_spot_engines_come_first_and_fall_back() -> None:
    job = find(render("overlays/spot"), "RayJob")
    config, by_name = read_config(job), dict(groups(job))
    assert config.rollout.labels == [{"role": "rollout", "market": market} for market in ("spot", "on-demand")]
    spot, on_demand = by_name["rollout-spot"], by_name["rollout-on-demand"]
    assert spot["labels"] == config.rollout.labels[0]
    assert on_demand["labels"] == config.rollout.labels[1]
    for name, market in (("rollout-spot", "spot"), ("learner", "on-demand"), ("head", "on-demand")):
        assert by_name[name]["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == market
    assert any(one.get("value") == "spot" for one in spot["template"]["spec"]["tolerations"])
    for group in (spot, on_demand):  # as they leave, Ray hears of it in time
        pod = group["template"]["spec"]
        told = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert "drain-node" in told
        assert (
            int(told.partition("--deadline-remaining-seconds=")[2].partition('"')[0])
            < pod["terminationGracePeriodSeconds"]
        )


def test_ranks_over_infiniband_are_on_two_nodes() -> None:
    job = find(render("overlays/infiniband"), "RayJob")
    learner = dict(groups(job))["learner"]
    assert learner["replicas"] * 4 == read_config(job).learner.ranks == 8
    assert learner["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]


def test_kueue_and_volcano_find_their_queue() -> None:
    kueue = find(render("overlays/kueue"), "RayJob")
    assert kueue["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "rollcall"
    assert kueue["spec"]["suspend"] is True
    volcano = find(render("overlays/volcano"), "RayJob")
    labels = volcano["metadata"]["labels"]
    assert labels["volcano.sh/queue-name"] == "rollcall"
    gang = [group for name, group in groups(volcano) if name != "head"]
    assert [group["minReplicas"] for group in gang] == [1, 1]
    classes = {one["metadata"]["name"] for one in render("cluster") if one["kind"] == "PriorityClass"}
    assert labels["ray.io/priority-class-name"] in classes


def test_cpus_are_enough_for_the_kind_overlay() -> None:
    job = find(render("overlays/kind-cpu"), "RayJob")
    config = read_config(job)
    assert config.cluster.device == "cpu"
    assert config.learner.gpus_per_rank == config.rollout.gpus_per_engine == 0
    assert find(render("overlays/kind-cpu"), "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]
    for name, group in groups(job):
        main = group["template"]["spec"]["containers"][0]
        assert not [key for key in main["resources"]["limits"] if "/" in key], name
        assert main["image"].startswith("rollcall-cpu:"), name
