"""As users run it on a cluster: `ray job submit -- python -m learner.main`, on pictures nobody here has seen."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import jobs, readme, warm_python
from tests.helpers.pictures import draw_shapes
from tests.helpers.ports import free_port

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A cluster that was there before the run; the environment in which `ray` commands reach it."""
    environment = {**warm_python.cold(os.environ), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    dashboard = free_port()
    with tempfile.TemporaryDirectory(prefix="rc", dir="/tmp", ignore_cleanup_errors=True) as folder:
        names = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
        ports = " ".join(f"--{name}={free_port()}" for name in names) + f" --dashboard-port={dashboard}"
        words = f"ray start --head --block {ports} --num-cpus=4 --temp-dir={folder} --disable-usage-stats".split()
        with Path(folder, "console").open("w") as console:
            ray = subprocess.Popen(words, env=environment, stdout=console, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{dashboard}"
        environment["RAY_API_SERVER_ADDRESS"] = url
        try:
            jobs.wait_for("job agent", lambda: takes_jobs(dashboard, environment), ray, timeout_s=120)
            yield environment
        finally:
            ray.terminate()  # not `ray stop`: that ends every Ray of this user
            ray.wait(60)


def takes_jobs(port: int, environment: dict[str, str]) -> bool:
    """The dashboard is there some seconds before the agent that runs jobs."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)):
            return False
    nothing = subprocess.run(["ray", "job", "submit", "--", "true"], env=environment, capture_output=True, check=False)
    return nothing.returncode == 0


def test_a_folder_of_pictures_trains_under_ray_job_submit(cluster: dict[str, str], tmp_path: Path) -> None:
    """With the README's command and recipe, and a reward of the user's own that fails on every other row: dropped."""
    pictures = draw_shapes(tmp_path / "pictures", each=12)
    recipe, run_dir = tmp_path / "shapes.yaml", tmp_path / "run"
    recipe.write_text(readme.recipe())
    (command,) = [line for line in readme.commands() if line.startswith("ray job submit")]
    words = [f"data.path={pictures}", "steps=3", "learner.warmup_steps=1", "reward.on_error=drop"]
    words += ["reward.max_drop_share=0.9"]
    words += ["reward.functions={accuracy: 1.0, tests.helpers.hostile_rewards:nan_on_odd: 0.1}"]
    ours = {"deploy/recipes/qwen2vl-2b.yaml": str(recipe), "/shared/runs/dtd": str(run_dir)}
    for theirs, own in ours.items():
        assert theirs in command
        command = command.replace(theirs, own)
    job = ["bash", "-c", f"{command} {shlex.join(words)}"]
    done = subprocess.run(job, cwd=jobs.ROOT, env=cluster, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run folder: {socket.gethostname()}:{run_dir}" in done.stdout
    assert "no checkpoint found, starting at step 0" in done.stdout
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=jobs.ROOT, capture_output=True, text=True, check=False)
    assert json.loads((run_dir / "environment.json").read_text())["git_sha"] == head.stdout.strip()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["outcome"] == "finished"
    assert summary["steps"] == 3
    assert summary["max_logprob_gap"] < 1e-4
    (final,) = (row for row in jobs.rows(run_dir, "evaluations.jsonl") if row["step"] == 3)
    held_out = {label: rows for label, (_, rows) in final["per_class"].items()}
    assert held_out == {"circle": 3, "square": 3, "triangle": 3}
    samples = jobs.rows(run_dir, "samples.jsonl")
    assert samples
    assert all("list [ circle, square, triangle]" in row["problem"] for row in samples)
    last = jobs.rows(run_dir, "metrics.jsonl")[-1]  # law 6
    dropped = [row for row in jobs.rows(run_dir, "events.jsonl") if row["kind"] == "dropped"]
    assert last["groups_dispatched"] == last["groups_trained"] + last["groups_dropped"] == 3 * 16
    assert last["groups_dropped"] == len(dropped) > 10
    assert all("nan_on_odd" in row["reason"] and row["prompt"] for row in dropped)


def test_a_run_folder_in_rays_copy_of_the_checkout_is_refused(cluster: dict[str, str]) -> None:
    """The command without `run_dir`: its results could not be found again."""
    job = ["ray", "job", "submit", "--working-dir", str(jobs.ROOT), "--", "python", "-m", "learner.main"]
    done = subprocess.run(job, env=cluster, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "the run folder lies in Ray's copy of the working directory" in done.stdout + done.stderr
