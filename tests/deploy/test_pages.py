"""Commands of the pages of `deploy/`: run as they stand, or marked for a cluster and then true in all but that."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from rollout.scale import main as scale
from tests.deploy.test_kubernetes import list_errors
from tests.helpers.kuberay import ROOT
from tests.helpers.kubernetes.render import FOLDER, KUBECTL, OVERLAYS, render

PAGE = (FOLDER / "README.md").read_text()
MARK = "# on a cluster"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ELSEWHERE = [block for block in BLOCKS if block.startswith(MARK)]
HERE = [block for block in BLOCKS if block not in ELSEWHERE]
DEPLOYMENT = (ROOT / "deploy/README.md").read_text()


@pytest.mark.parametrize("block", HERE)
def test_a_command_without_a_mark_runs_here(block: str) -> None:
    path = f"{KUBECTL.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "kind: RayJob" in done.stdout


@pytest.mark.parametrize("block", ELSEWHERE)
def test_what_is_marked_for_a_cluster_names_what_is_there(block: str) -> None:
    """The shell can read it; folders, files, overlays and modules of ours exist."""
    subprocess.run(["bash", "-n", "-c", block], check=True, timeout=30)
    for name in re.findall(r"(?:-k|-f|^)\s*(deploy/[\w/.-]+)", block, re.MULTILINE):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"submit (overlays/[\w-]+)", block):
        assert name == "overlays/mine" or name.partition("/")[2] in OVERLAYS
    for name in re.findall(r"python -m ([\w.]+)", block):
        assert importlib.util.find_spec(name), name
    for name in re.findall(r"/app/(deploy/[\w./-]+)", block):
        assert (ROOT / name).is_file(), name


def test_the_overlay_shown_is_one(tmp_path: Path) -> None:
    """The one of a user's own, at the place that it names."""
    (shown,) = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    place, text = shown
    for folder in ("base", "components"):
        target = tmp_path / "deploy/kubernetes" / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", FOLDER / folder, target], check=True)
    mine = tmp_path / place
    mine.parent.mkdir(parents=True)
    mine.write_text(text)
    documents = render(mine.parent)
    assert list_errors(documents) == []
    (job,) = (one for one in documents if one["kind"] == "RayJob")
    assert "deploy/recipes/dtd.yaml" in job["spec"]["entrypoint"]
    assert yaml.safe_load(text)["images"][0]["digest"].startswith("sha256:")


def test_every_folder_is_listed_with_its_level() -> None:
    from tests.deploy.test_kubernetes import LEVELS

    told = dict(re.findall(r"^\| `([\w/-]+?)/?` \|.*\| (\w*) \|$", PAGE, re.MULTILINE))
    assert {name for name, level in told.items() if level} == {"base", *(f"overlays/{name}" for name in OVERLAYS)}
    assert {name: level for name, level in told.items() if level and level != "baseline"} == LEVELS


def test_the_count_of_mistakes_is_right() -> None:
    from tests.deploy.test_planted_mistakes import INSECURE, MISTAKES

    assert f"They plant {len(MISTAKES) + len(INSECURE)} mistakes" in PAGE


@pytest.mark.parametrize("line", re.findall(r"^    python -m rollout\.scale (.*)$", DEPLOYMENT, re.MULTILINE))
def test_the_commands_to_scale_are_read(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the folder, in which no run was."""
    monkeypatch.chdir(tmp_path)
    assert scale(line.partition("#")[0].split()) == 2
    assert "no such run" in capsys.readouterr().err
