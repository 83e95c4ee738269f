"""Rules of ours for the run: groups that hold what its entrypoint asks for, and what happens when it ends."""

from __future__ import annotations

from collections.abc import Iterator

from common.config.schema import Config
from tests.helpers.kuberay import groups, read_cluster
from tests.helpers.kubernetes.reading import count, list_workers, meets, of_kind, read_config, read_main
from tests.helpers.kubernetes.render import Document

SHELL_SYNTAX = set(";&|$`'\"*?[]{}()<>\\~#!")


def check_groups(documents: list[Document]) -> Iterator[str]:
    """Yield where a learner group would change, or a rollout group would not follow the engines."""
    for document in of_kind(documents, "RayJob", "RayCluster"):
        cluster = read_cluster(document)
        if cluster["headGroupSpec"].get("resources") != {"CPU": "0"}:
            yield "head: it must offer no CPU to actors"
        for name, group in list_workers(document):
            low, high = group["minReplicas"], group["maxReplicas"]
            fixed = not cluster.get("enableInTreeAutoscaling")
            if (name == "learner" or fixed) and not low == high == group.get("replicas"):
                yield f"replicas: of {name}, minReplicas = replicas = maxReplicas must hold"
            if name != "learner" and not fixed and "replicas" in group:
                yield f"replicas: of {name} they are the autoscaler's to set"
            tolerated = {one["key"] for one in group["template"]["spec"].get("tolerations", [])}
            if count(group, "nvidia.com/gpu") and "nvidia.com/gpu" not in tolerated:
                yield f"tolerations: {name} asks for GPUs and does not tolerate their nodes"


def check_run(documents: list[Document]) -> Iterator[str]:
    """Yield where the entrypoint asks for what the groups do not hold, or by labels that they do not have."""
    for job in of_kind(documents, "RayJob"):
        if SHELL_SYNTAX & set(job["spec"]["entrypoint"]):
            yield "entrypoint: words only, no shell syntax"
            continue
        config, workers = read_config(job), [group for _, group in list_workers(job)]
        ranks, engines = _pick(workers, config.learner.labels), _pick(workers, config.rollout.labels)
        for part, preferences in (("learner", config.learner.labels), ("rollout", config.rollout.labels)):
            yield from (
                f"labels: {part}.labels asks for {one}, which no group has"
                for one in preferences
                if not _pick(workers, [one])
            )
        for group in workers:
            if group not in ranks and group not in engines:
                yield f"labels: nothing of the run goes to group {group['groupName']}"
        yield from _check_gpus(config, ranks, engines)


def _pick(workers: list[Document], preferences: list[dict[str, str]]) -> list[Document]:
    """Return the groups that some of the label selectors admits, all of them where there is none."""
    return [group for group in workers if any(meets(group.get("labels", {}), one) for one in preferences or [{}])]


def _check_gpus(config: Config, ranks: list[Document], engines: list[Document]) -> Iterator[str]:
    """Yield where GPUs of the groups and of the run differ. One group for both holds exactly both."""
    held = sum(group.get("replicas", 0) * count(group, "nvidia.com/gpu") for group in ranks)
    wanted = config.learner.ranks * config.learner.gpus_per_rank
    each, most = config.rollout.gpus_per_engine, config.rollout.max_engines
    if ranks == engines:
        if held != wanted + most * each:
            yield f"GPUs: the run takes {wanted + most * each:g}, its group has {held:g}"
        return
    if held != wanted:
        yield f"GPUs: the ranks take {wanted:g}, their group has {held:g}"
    for group in engines:
        if (pod := count(group, "nvidia.com/gpu")) != each:
            yield f"GPUs: an engine takes {each:g}, a pod of {group['groupName']} has {pod:g}"
    if most > (pods := sum(group["maxReplicas"] for group in engines)):
        yield f"GPUs: no room for {most} engines in {pods} pods"


def check_recovery(documents: list[Document]) -> Iterator[str]:
    """Yield where a lost run would not go on, or a mistyped one would be tried again."""
    for job in of_kind(documents, "RayJob"):
        if job["spec"].get("backoffLimit", 0) != 0:
            yield "backoffLimit: a typo would ask for all GPUs again; `submit` sets it after the preflight"
        if SHELL_SYNTAX & set(job["spec"]["entrypoint"]):
            continue
        config = read_config(job)
        mounted = {one["mountPath"] for one in read_main(groups(job)[0][1])["volumeMounts"]}
        if config.resume != "auto" or not config.checkpoint.every:
            yield "resume: a lost run must go on from its newest checkpoint"
        if not any(str(config.run_dir).startswith((f"{place}/", "s3://", "gs://")) for place in mounted - {"/dev/shm"}):
            yield "run_dir: it must outlive the pods"
    for job in of_kind(documents, "Job"):
        rules = job["spec"].get("podFailurePolicy", {}).get("rules", [])
        names = {one["name"] for one in job["spec"]["template"]["spec"]["containers"]}
        exits = [rule["onExitCodes"] for rule in rules if rule["action"] == "FailJob" and "onExitCodes" in rule]
        if not any(2 in one["values"] and one["operator"] == "In" and one["containerName"] in names for one in exits):
            yield f"podFailurePolicy: {job['metadata']['name']} would repeat a refusal"
