"""Whole runs of `python -m learner.main` as a user starts them: in a process of their own, with a Ray of their own."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from learner.audit.rules import find_violations
from learner.audit.run_record import read_record
from learner.storage.run_bucket import bring_run
from tests.helpers import warm_python

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")
SMALL = (
    "seed=5",
    "steps=10",
    "learner.warmup_steps=2",
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.cpus_per_engine=0.5",
    "learner.cpus_per_rank=0.5",
    "evaluation.limit=40",
    "checkpoint.every=3",
    "tracking.samples_every=1",
    "tracking.samples=8",
)


def start(
    run_dir: Path,
    *words: str,
    warm: bool = False,
    warm_workers: bool = False,
    own_group: bool = False,
    module: str = "learner.main",
) -> subprocess.Popen[str]:
    """A small run on the embedded default, its console in `<run_dir>.log`.

    `warm` processes have their imports done and are no descendants of the one that is returned. With `warm_workers`
    all but the driver are: it is the one that is returned, and can be killed. One in its `own_group` heeds SIGHUP, even
    where the tests run under nohup.
    """
    python = warm_python.COMMAND if warm else (sys.executable,)
    if own_group:
        python = ("env", "--default-signal=HUP", *python)
    command = [*python, "-m", module, *SMALL, f"run_dir={run_dir}", *words]
    environment = dict(os.environ) if warm or warm_workers else warm_python.cold(os.environ)
    with Path(f"{run_dir}.log").open("a") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=own_group,
        )


def finish(process: subprocess.Popen[str], run_dir: Path, *, timeout_s: float = 240.0) -> int:
    """Its exit code; the console is in the failure message of whoever asserts on it. A run that is done is audited."""
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        raise AssertionError(f"not done after {timeout_s} s:\n{console(run_dir)}") from None
    if code == 0:
        assert not (violations := audit(run_dir)), violations
    return code


def audit(run_dir: Path) -> list[str]:
    """What the auditor finds wrong with a run, wherever its console says that its folder is."""
    (place, *_) = re.findall(r"^run folder: +(.*)$", console(run_dir), re.MULTILINE)[-1:] or [str(run_dir)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = bring_run(place, Path(scratch)) if place.startswith("s3://") else run_dir
        return find_violations(read_record(folder))


def complete(run_dir: Path, *words: str) -> Path:
    """Run to the end; fails the test with the console if it does not get there."""
    code = finish(start(run_dir, *words, warm=True), run_dir)
    assert code == 0, console(run_dir)
    return run_dir


def console(run_dir: Path) -> str:
    return Path(f"{run_dir}.log").read_text()


def rows(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """Lines of one of the run's jsonl files; one still being written is left out."""
    path = run_dir / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for(what: str, condition: Callable[[], Any], process: subprocess.Popen[Any], *, timeout_s: float = 400) -> Any:
    """What `condition` gives once it gives something true; fails if the run ends before, or at the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert process.poll() is None, f"ended before {what}"
        time.sleep(0.02)
    raise AssertionError(f"no {what} in {timeout_s} s")


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The exported weights."""
    return load_file(run_dir / "export" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Two runs ended with the same bits (law 5)."""
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def kill_and_resume(run_dir: Path, *words: str) -> None:
    """Kill a small run after one of its steps 4 to 8, by when its first checkpoint is whole, and let it go on."""
    process = start(run_dir, *words, warm_workers=True)
    step = random.randrange(4, 9)
    wait_for(f"step {step}", lambda: len(rows(run_dir, "metrics.jsonl")) >= step, process)
    process.kill()
    process.wait(30)
    complete(run_dir, *words, "resume=auto")
    assert "from step" in console(run_dir)


def kill_an_engine(run_dir: Path, process: subprocess.Popen[str]) -> str:
    """Kill any engine of a run once three steps are done. Return its name."""
    wait_for("step 3", lambda: len(rows(run_dir, "metrics.jsonl")) >= 3, process)
    engine = random.choice([row for row in rows(run_dir, "events.jsonl") if row["kind"] == "engine_up"])
    os.kill(engine["pid"], signal.SIGKILL)
    return str(engine["engine"])


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def find_driver(process: subprocess.Popen[str]) -> psutil.Process:
    """The only child of the parent process that `start` returns."""
    (driver,) = psutil.Process(process.pid).children()
    return driver


@contextmanager
def nothing_left_in_shared_memory(*, timeout_s: float = 15.0) -> Iterator[None]:
    """Fails if the block leaves a file in /dev/shm that no living process holds: other tests run at the same time."""
    before = set(SHARED_MEMORY.iterdir())
    yield
    deadline = time.monotonic() + timeout_s
    while left := orphans_in_shared_memory() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def orphans_in_shared_memory() -> set[Path]:
    """Files in /dev/shm that no living process has open or mapped."""
    files = set(SHARED_MEMORY.iterdir())
    for process in psutil.process_iter():
        folder = Path("/proc") / str(process.pid)
        with suppress(OSError):  # it has ended, or is somebody else's
            mapped = [line.split(maxsplit=5)[-1] for line in (folder / "maps").read_text().splitlines()]
            files -= {Path(name) for name in mapped if name.startswith(str(SHARED_MEMORY))}
        with suppress(OSError):
            for handle in (folder / "fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    files.discard(handle.readlink())
    return files


def gone(processes: Sequence[psutil.Process], *, timeout_s: float = 15.0) -> list[psutil.Process]:
    """Those of `processes` that are still alive after `timeout_s`."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
