"""The RayJob of `deploy/kubernetes/base`: KubeRay's schema, its operator's rules, and our own command line."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.config.cli import Invocation, parse
from learner.driver.preflight.capacity import count_resources
from tests.helpers.kuberay import ROOT, groups, operator_errors, schema_errors
from tests.helpers.kubernetes.reading import IMAGE_ROOT
from tests.helpers.kubernetes.render import find, put, render


@pytest.fixture
def job() -> dict[str, Any]:
    return find(render("base"), "RayJob")


def group(job: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(groups(job))[name]


def container(job: dict[str, Any], name: str) -> dict[str, Any]:
    (only,) = group(job, name)["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def entrypoint(job: dict[str, Any]) -> list[str]:
    """The words of the entrypoint, with this checkout in place of the image's."""
    return shlex.split(job["spec"]["entrypoint"].replace(f"{IMAGE_ROOT}/", f"{ROOT}/"))


def invocation(job: dict[str, Any]) -> Invocation:
    """The entrypoint, read by our command line as it would be in the image."""
    words = entrypoint(job)
    assert words[:3] == ["python", "-m", "learner.main"]
    return parse(words[3:])


CLUSTER = "spec.rayClusterSpec"
ROLLOUT = f"{CLUSTER}.workerGroupSpecs.1"


def test_schema_accepts_it(job: dict[str, Any]) -> None:
    assert schema_errors(job) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (f"{ROLLOUT}.idleTimeoutSecond", 120, "idleTimeoutSecond"),
        (f"{ROLLOUT}.maxReplicas", "64", "not of type 'integer'"),
        (f"{ROLLOUT}.groupName", None, "'groupName' is a required property"),
        (f"{ROLLOUT}.template.spec.containers.0.imagePolicy", "Always", "imagePolicy"),
        (f"{ROLLOUT}.template.spec.securityContext.runAsNonroot", True, "runAsNonroot"),
        (f"{CLUSTER}.authOptions.mode", "tokn", "'tokn' is not one of"),
        (f"{CLUSTER}.headGroupSpec.rayStartParams", {"num-cpus": 0}, "not of type 'string'"),
        ("spec.entryPoint", "python", "entryPoint"),
        ("x-image", "rollcall", "x-image"),
    ],
)
def test_schema_refuses(job: dict[str, Any], path: str, value: Any, told: str) -> None:
    put(job, path, value)
    (error,) = schema_errors(job)
    assert told in error


def test_schema_forgives_nulls_and_what_has_a_default(job: dict[str, Any]) -> None:
    put(job, f"{ROLLOUT}.minReplicas", None)
    put(job, f"{ROLLOUT}.rayStartParams", {})
    group(job, "rollout")["suspend"] = None
    assert schema_errors(job) == []


def test_operator_accepts_it(job: dict[str, Any]) -> None:
    assert list(operator_errors(job)) == []


RULES = {"deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED"}}]}


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (f"{CLUSTER}.rayVersion", "2.51.1", "2.52 or later"),
        (f"{CLUSTER}.rayVersion", None, "2.52 or later"),
        (f"{CLUSTER}.headGroupSpec.rayStartParams", {"num-cpus": "0"}, "head: give resources in one place"),
        (f"{ROLLOUT}.rayStartParams", {"labels": "role=rollout"}, "rollout: labels go to"),
        (f"{ROLLOUT}.template.spec.restartPolicy", "Always", "rollout: restartPolicy"),
        (f"{CLUSTER}.headGroupSpec.template.spec.restartPolicy", "OnFailure", "head: restartPolicy"),
        (f"{ROLLOUT}.minReplicas", 65, "rollout: minReplicas <= replicas <= maxReplicas"),
        (f"{ROLLOUT}.replicas", 65, "rollout: minReplicas <= replicas <= maxReplicas"),
        ("metadata.name", "r" * 48, "at most 47 characters"),
        ("metadata.name", "Rollcall", "DNS label"),
        ("spec.deletionStrategy", RULES, "deletionRules and shutdownAfterJobFinishes"),
        ("spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished needs"),
        ("spec.submitterConfig", {"backoffLimit": 1}, "SidecarMode takes no submitter"),
    ],
)
def test_operator_refuses(job: dict[str, Any], path: str, value: Any, told: str) -> None:
    put(job, path, value)
    (error,) = operator_errors(job)
    assert told in error


def test_entrypoint_is_one_of_ours_and_its_recipe_is_in_the_image(job: dict[str, Any]) -> None:
    invocation(job)
    recipes = [Path(word) for word in entrypoint(job) if word.endswith(".yaml")]
    assert [path.relative_to(ROOT).parts[:2] for path in recipes] == [("deploy", "recipes")]


def test_a_lost_head_resumes_from_the_shared_volume(job: dict[str, Any]) -> None:
    config = invocation(job).config
    assert job["spec"]["backoffLimit"] == 0, (
        "a typo would ask for all GPUs again; `submit` raises it after the preflight"
    )
    assert config.retries > 0
    assert config.resume == "auto"
    assert config.checkpoint.every > 0
    for name, _ in groups(job):
        mounts = {mount["mountPath"]: mount["name"] for mount in container(job, name)["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in group(job, name)["template"]["spec"]["volumes"]}
        assert config.run_dir is not None and Path("/shared") in Path(config.run_dir).parents
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]


def test_a_driver_that_is_told_to_end_has_time_to_save(job: dict[str, Any]) -> None:
    """SIGTERM reaches it, the ranks outlive it, and nothing kills before it is done: closing takes ten seconds."""
    needed = invocation(job).config.checkpoint.grace_s + 10
    head, learner = (container(job, name) for name in ("head", "learner"))
    (stop_wait,) = [entry["value"] for entry in head["env"] if entry["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    told = head["lifecycle"]["preStop"]["exec"]["command"][-1]
    driver_wait = float(told.rpartition("timeout=")[2].strip(") \n"))
    _, ranks_wait = learner["lifecycle"]["preStop"]["exec"]["command"]
    graces = {
        name: group(job, name)["template"]["spec"]["terminationGracePeriodSeconds"] for name in ("head", "learner")
    }
    assert needed <= float(stop_wait)
    assert needed <= driver_wait < graces["head"]
    assert driver_wait < float(ranks_wait) < graces["learner"]


def test_the_heads_last_word_ends_a_driver(job: dict[str, Any]) -> None:
    """What `preStop` runs sends SIGTERM to a process whose words hold learner.main, and waits for it."""
    told = container(job, "head")["lifecycle"]["preStop"]["exec"]["command"][-1].replace("learner.main", "rollcall-x")
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "rollcall-x"])
    with subprocess.Popen([sys.executable, "-c", told]) as teller:
        assert driver.wait(30) == -signal.SIGTERM
        assert teller.wait(30) == 0


def test_worker_groups_hold_what_the_run_asks_for(job: dict[str, Any]) -> None:
    config = invocation(job).config
    learner, rollout = group(job, "learner"), group(job, "rollout")
    assert learner["minReplicas"] == learner["maxReplicas"] == learner["replicas"] == 1
    # Exactly the ranks fit the learner's pod, so no engine does.
    assert gpus(job, "learner") == config.learner.ranks * config.learner.gpus_per_rank
    assert cpus(job, "learner") >= config.learner.ranks * config.learner.cpus_per_rank
    assert gpus(job, "rollout") == config.rollout.gpus_per_engine
    assert cpus(job, "rollout") >= config.rollout.cpus_per_engine + config.reward.cpus_per_worker
    assert rollout["minReplicas"] <= config.rollout.min_engines <= rollout["maxReplicas"]


def test_scaling_rollouts_is_one_number(job: dict[str, Any]) -> None:
    now = invocation(job).config.rollout.engines
    assert job["spec"]["entrypoint"].count(f"rollout.engines={now}") == 1
    job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace(f"rollout.engines={now}", "rollout.engines=9")
    config = invocation(job).config
    assert count_resources(config)["GPU"] == gpus(job, "learner") + 9 * gpus(job, "rollout")
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"], "pods follow the engines asked for"
    assert "replicas" not in group(job, "rollout"), "no second number to keep in step"
    assert config.cluster.wait_for_resources_s >= 600, "new nodes take minutes"


def test_no_actor_lands_on_the_head(job: dict[str, Any]) -> None:
    assert group(job, "head")["resources"] == {"CPU": "0"}
    config = invocation(job).config
    assert min(config.learner.cpus_per_rank, config.rollout.cpus_per_engine, config.reward.cpus_per_worker) > 0


def test_ray_is_the_locked_one_and_asks_for_a_token(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray[default]=={cluster['rayVersion']}" in (ROOT / "pyproject.toml").read_text()
    assert cluster["authOptions"] == {"mode": "token", "secretName": "rollcall-ray-token"}


def gpus(job: dict[str, Any], name: str) -> float:
    return float(container(job, name)["resources"]["limits"].get("nvidia.com/gpu", 0))


def cpus(job: dict[str, Any], name: str) -> float:
    return float(container(job, name)["resources"]["requests"]["cpu"])
