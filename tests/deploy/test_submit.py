"""`deploy/kubernetes/submit` and the words that pods are told: run as they stand, with a cluster's answers made up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.kuberay import ROOT
from tests.helpers.kubernetes.reading import IMAGE_ROOT
from tests.helpers.kubernetes.render import FOLDER, KUBECTL, find, render

# The real kubectl renders; what it would send to a cluster is written down, and answered from the environment.
STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys
words, told = sys.argv[1:], os.environ["TOLD"]
sent = ""
if "--kustomize" in words or words[0] == "kustomize":
    folder = words[-1]
    sent = subprocess.run([{str(KUBECTL)!r}, "kustomize", folder], check=True, capture_output=True, text=True).stdout
if words[0] == "kustomize":
    print(sent)
else:
    with open(told, "a") as file:
        print(json.dumps([words, sent]), file=file)
if "rayjob" in words and "get" in words:
    print(os.environ.get("RAYJOB", ""), end="")
if "job" in words and "get" in words:
    print(os.environ.get("ENDED", ""), end="")
"""


def submit(folder: str, tmp_path: Path, **answers: str) -> tuple[int, list[tuple[list[str], str]], str]:
    """Run the script on a copy of the folder; returns exit code, what kubectl was told and sent, and errors."""
    there = tmp_path / "kubernetes"
    if not there.exists():
        shutil.copytree(FOLDER, there)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/kubectl").write_text(STAND_IN)
        (tmp_path / "bin/kubectl").chmod(0o755)
    told = tmp_path / "told"
    told.write_text("")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TOLD": str(told), "PREFLIGHT_SECONDS": "2", **answers}
    done = subprocess.run(
        ["sh", there / "submit", folder], check=False, env=environment, capture_output=True, text=True, timeout=60
    )
    assert not list(there.glob("overlays/.preflight*")), "nothing is left behind"
    return done.returncode, [tuple(json.loads(line)) for line in told.read_text().splitlines()], done.stderr


def list_kinds(text: str) -> set[str]:
    return {one["kind"] for one in yaml.safe_load_all(text)}


def test_gpus_are_asked_for_once_the_preflight_has_passed(tmp_path: Path) -> None:
    code, told, errors = submit("overlays/restricted", tmp_path, ENDED="SuccessCriteriaMet Complete")
    assert code == 0, errors
    first, second = (sent for words, sent in told if "apply" in words)
    assert "Job" in list_kinds(first) and "RayJob" not in list_kinds(first)
    assert "RayJob" in list_kinds(second)
    entrypoint = find([*yaml.safe_load_all(second)], "RayJob")["spec"]["entrypoint"]
    assert find([*yaml.safe_load_all(first)], "Job")["spec"]["template"]["spec"]["containers"][0]["args"] == [
        entrypoint
    ]
    patch = json.loads(told[-1][0][-1].removeprefix("--patch="))
    assert patch == {"spec": {"backoffLimit": 3}}, "a lost head is tried again, now that a typo is out of question"


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ({"ENDED": "FailureTarget Failed"}, 2, "nothing asked for a GPU"),
        ({}, 1, "the preflight has not ended"),
        ({"RAYJOB": "rayjob.ray.io/rollcall", "ENDED": "Complete"}, 1, "there is a run already"),
    ],
)
def test_otherwise_nothing_asks_for_one(answers: dict[str, str], code: int, said: str, tmp_path: Path) -> None:
    found, told, errors = submit("overlays/spot", tmp_path, **answers)
    assert found == code
    assert said in errors
    assert not any("RayJob" in list_kinds(sent) for _, sent in told)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    code, told, errors = submit("overlays/none", tmp_path)
    assert (code, told) == (2, [])
    assert errors.startswith("usage:")


@pytest.mark.slow
@pytest.mark.parametrize(("word", "code"), [("", 0), ("rollout.engine=2", 2)])
def test_the_preflight_runs_the_entrypoint_dry(word: str, code: int, tmp_path: Path) -> None:
    """Its command as it is, on the entrypoint of the CPU overlay; a typo ends it with the code that ends its Job."""
    job = find(render("overlays/kind-cpu"), "RayJob")
    (container,) = find(render("overlays/preflight"), "Job")["spec"]["template"]["spec"]["containers"]
    words = job["spec"]["entrypoint"].replace(IMAGE_ROOT, str(ROOT)).replace("/shared", str(tmp_path / "shared"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = [*container["command"], f"{words} {word}"]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    if code:
        assert "rollout.engines" in done.stderr, "it says what was meant"
    else:
        assert "nothing was started" in done.stdout
    assert not (tmp_path / "shared").exists()
