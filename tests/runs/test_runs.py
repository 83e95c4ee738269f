"""Laws 3 and 5 and the acceptance of issue and house on whole runs: real Ray, vLLM, DeepSpeed and a real Qwen2-VL."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from common.data.image import read_pixels
from common.data.sources import load
from common.models.prompts import messages
from tests.helpers import jobs
from tests.helpers.gated_reward import GATE, GATED
from tests.helpers.modes import assert_modes
from tests.helpers.vllm_alone import DIGITS

pytestmark = pytest.mark.engine
RAYS_OWN = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # notice after a minute that their node is gone


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run left alone: one engine, one rank."""
    return jobs.complete(tmp_path_factory.mktemp("runs") / "undisturbed", "--profile", "steps=8:20")


def test_all_that_a_run_leaves_follows_the_umask(undisturbed: Path, tmp_path: Path) -> None:
    """Checkpoints, export, profile, report: another user can read and serve them."""
    (tmp_path / "new").touch()
    assert_modes(undisturbed, 0o666 & ~(tmp_path / "new").stat().st_mode)


def test_a_run_leaves_what_the_readme_says(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["outcome"] == "finished"
    assert summary["steps"] == summary["weights_version"] == 10
    assert 0 < summary["max_logprob_gap"] < 1e-4
    assert summary["startup_seconds"] < summary["wall_seconds"]
    metrics = jobs.rows(undisturbed, "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(10))
    assert all(row["grad_norm"] > 0 for row in metrics)
    for row in metrics:  # law 6
        assert row["groups_dispatched"] == row["groups_trained"] + row["groups_dropped"] == 8 * (row["step"] + 1)
        assert row["weights_version"] == row["step"] + 1
    assert [row["step"] for row in jobs.rows(undisturbed, "evaluations.jsonl")] == [0, 10]
    assert "10 of 10" in (undisturbed / "report.html").read_text()
    lines = jobs.console(undisturbed).splitlines()
    assert str(undisturbed) in lines[0]
    assert str(undisturbed) in lines[-1]


def test_a_profile_is_of_every_process_and_ends_with_the_run(undisturbed: Path) -> None:
    """Steps 8 and 9: the window is longer than the run."""
    folder = undisturbed / "profile"
    assert {path.name for path in folder.iterdir()} == {
        *(f"{process}.{ending}" for process in ("rank-0", "engine-0") for ending in ("json.gz", "txt")),
        "ray-timeline.json",
    }
    for process, operator in (("rank-0", "Backward"), ("engine-0", "aten::")):
        trace = json.loads(gzip.decompress((folder / f"{process}.json.gz").read_bytes()))
        assert any(operator in str(event.get("name")) for event in trace["traceEvents"])
        assert "Self CPU" in (folder / f"{process}.txt").read_text()
    calls = [event["name"] for event in json.loads((folder / "ray-timeline.json").read_text())]
    assert {"serve", "learn", "pack_weights"} <= set(calls)


@pytest.mark.parametrize("stage", [2, 3])
def test_law_3_two_engines_and_two_ranks_are_one_and_one(undisturbed: Path, tmp_path: Path, stage: int) -> None:
    """Same tokens, rewards and gradient norms; weights within what Adam makes of rounding where a gradient is ~0."""
    words = ["rollout.engines=2", "learner.ranks=2", f"learner.zero_stage={stage}"]
    words += ["rollout.cpus_per_engine=0.25", "learner.cpus_per_rank=0.25"]
    pair = jobs.complete(tmp_path / "pair", *words)
    for one, two in zip(jobs.rows(undisturbed, "samples.jsonl"), jobs.rows(pair, "samples.jsonl"), strict=True):
        assert one["completions"] == two["completions"]
    for one, two in zip(jobs.rows(undisturbed, "metrics.jsonl"), jobs.rows(pair, "metrics.jsonl"), strict=True):
        assert one["reward"] == two["reward"]
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        assert two["logprob_gap_max"] < 1e-4
    expected, found = jobs.weights(undisturbed), jobs.weights(pair)
    worst = max(float((expected[name] - found[name]).abs().max()) for name in expected)
    assert worst < 0.05 * 5e-4 * 10  # a twentieth of the learning rate a step


def test_law_5_a_killed_driver_resumes_to_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    process = jobs.start(run_dir)
    step = random.randrange(4, 9)  # by the fourth the first checkpoint, of step 3, is whole
    jobs.wait_for(f"step {step}", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= step, process)
    actors = [one for one in jobs.descendants(process) if one.name() not in RAYS_OWN]
    process.kill()
    process.wait(30)
    assert len(actors) > 3
    assert jobs.gone(actors) == []
    jobs.complete(run_dir, "resume=auto")
    assert "from step" in jobs.console(run_dir)
    jobs.assert_same_weights(undisturbed, run_dir)
    metrics = jobs.rows(run_dir, "metrics.jsonl")
    expected = jobs.rows(undisturbed, "metrics.jsonl")
    decisive = ("step", "reward", "loss", "kl", "grad_norm", "groups_trained")
    assert [[row[key] for key in decisive] for row in metrics] == [[row[key] for key in decisive] for row in expected]


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume that holds a whole run but no checkpoint: weights and two moments are some 9 MB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "rollcall-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False, timeout=10).returncode:
        pytest.skip("mounting a small volume needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=10)


def test_law_5_a_killed_engine_and_a_full_disk_change_nothing(undisturbed: Path, small_volume: Path) -> None:
    process = jobs.start(small_volume, warm=True)
    killed = jobs.kill_an_engine(small_volume, process)
    assert jobs.finish(process, small_volume) == 0, jobs.console(small_volume)
    events = jobs.rows(small_volume, "events.jsonl")
    assert [row["engine"] for row in events if row["kind"] == "engine_lost"] == [killed]
    refused = [row for row in events if row["kind"] == "checkpoint_failed"]
    assert all("no room for a checkpoint" in row["why"] for row in refused), "found before it was written"
    failed = [row["step"] for row in refused]
    assert failed == [3, 4, 6, 9, 10]  # due at 3, 6, 9 and the end; tried again after 1, 2, 4 steps
    assert json.loads((small_volume / "summary.json").read_text())["checkpoint_failures"] == len(failed)
    assert list((small_volume / "checkpoints").glob("*")) == []
    jobs.assert_same_weights(undisturbed, small_volume)


def test_a_disk_that_is_full_to_the_last_byte_ends_in_one_error(small_volume: Path) -> None:
    """The run takes all its steps; what cannot be exported is said with the cause, and no traceback."""
    process = jobs.start(small_volume, "steps=5", "checkpoint.every=2", warm=True)
    jobs.wait_for("step 1", lambda: len(jobs.rows(small_volume, "metrics.jsonl")) >= 1, process)
    with (small_volume / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    assert jobs.finish(process, small_volume) == 1, jobs.console(small_volume)
    console = jobs.console(small_volume)
    assert "Traceback" not in console
    assert console.count("\nerror: ") == 1
    assert re.search(r"error: the exported model is not in the run folder\n  got: .*No space left on device", console)
    assert "failed after 5 of 5 steps" in console
    assert "No space left" in re.findall(r"^  cause +(.*)$", console, re.MULTILINE)[0]
    assert not re.search(r"why=.*remedy", console)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_law_5_a_signal_ends_a_run_cleanly_and_loses_no_step(
    undisturbed: Path, tmp_path: Path, number: int, code: int
) -> None:
    """No process, no shared-memory file, the folder says how it ended; resumed, it is the run left alone.

    SIGHUP goes to Ray's processes too, as from a terminal that is closed.
    """
    run_dir = tmp_path / "run"
    with jobs.nothing_left_in_shared_memory():
        process = jobs.start(run_dir, "checkpoint.every=100", own_group=True)
        family: list[psutil.Process] = []
        step = random.randrange(2, 6)  # on busy cores the last steps may be done before the signal arrives
        jobs.wait_for(f"step {step}", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= step, process)
        family = jobs.descendants(process)
        if number == signal.SIGHUP:
            os.killpg(process.pid, number)
        else:
            process.terminate()
        assert jobs.finish(process, run_dir, timeout_s=60) == code, jobs.console(run_dir)
        assert len(family) > 3
        assert jobs.gone(family) == []
    assert json.loads((run_dir / "summary.json").read_text())["outcome"] == "interrupted"
    assert "interrupted" in (run_dir / "report.html").read_text()
    assert "Traceback" not in jobs.console(run_dir)
    done = len(jobs.rows(run_dir, "metrics.jsonl"))
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step-{done:06}"]
    jobs.complete(run_dir, "resume=auto")
    assert f"going on from step {done} " in jobs.console(run_dir)
    jobs.assert_same_weights(undisturbed, run_dir)
    assert [row["step"] for row in jobs.rows(run_dir, "metrics.jsonl")] == list(range(10))


def test_a_signal_ends_a_run_that_stands_still_within_a_reward_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wait of the driver is deaf, however long it may last: `reward.timeout_s` is ten minutes here."""
    gate, run_dir = tmp_path / "gate", tmp_path / "run"
    monkeypatch.setenv(GATE, str(gate))
    process = jobs.start(run_dir, *GATED, "steps=30", "checkpoint.every=100")
    jobs.wait_for("step 3", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= 3, process)
    gate.touch()
    seen = jobs.wait_for("a standstill", lambda: await_standstill(run_dir), process)
    process.terminate()
    assert jobs.finish(process, run_dir, timeout_s=60) == 143, jobs.console(run_dir)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step-{seen:06}"]
    gate.unlink()


def await_standstill(run_dir: Path) -> int:
    """The steps that are done, once none has come for two seconds; else 0."""
    done = len(jobs.rows(run_dir, "metrics.jsonl"))
    time.sleep(2)
    return done if len(jobs.rows(run_dir, "metrics.jsonl")) == done else 0


def test_the_export_is_what_transformers_and_vllm_load_as_it_is(undisturbed: Path) -> None:
    """Both give the answers that the run's last evaluation counted right."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    export, rows = undisturbed / "export", 40
    assert (export / "README.md").read_text().count("| ") > 2
    assert not [path.name for path in export.iterdir() if path.suffix in {".pt", ".sha256"}]
    alone = subprocess.run(
        [sys.executable, "-m", "tests.helpers.vllm_alone", str(export), str(rows)],
        cwd=jobs.ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    answers = re.findall(r"^answer: (.*)$", alone.stdout, re.MULTILINE)
    assert len(answers) == rows, alone.stderr[-3000:]
    source = load(DIGITS, split="test")
    right = [answer == source[row].label for row, answer in enumerate(answers)]
    (final,) = (row for row in jobs.rows(undisturbed, "evaluations.jsonl") if row["step"] == 10)
    assert sum(right) == sum(count for count, _ in final["per_class"].values())

    model: Any = AutoModelForImageTextToText.from_pretrained(export, trust_remote_code=False)
    processor: Any = AutoProcessor.from_pretrained(export, trust_remote_code=False)
    for row in range(5):
        chat = messages(source[row], "no_think")
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        image = source[row].image
        assert image is not None
        inputs = processor(text=[text], images=[Image.fromarray(read_pixels(image))], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(tokens, skip_special_tokens=True) == answers[row]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_default_runs_on_a_gpu(tmp_path: Path) -> None:
    run_dir = jobs.complete(tmp_path / "gpu", "--config", str(jobs.ROOT / "deploy/recipes/digits-gpu.yaml"))
    assert json.loads((run_dir / "summary.json").read_text())["max_logprob_gap"] < 1e-3
