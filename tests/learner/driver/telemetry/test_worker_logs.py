"""What is copied of Ray's own files when a run ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

from learner.driver.telemetry.worker_logs import MOST_BYTES, MOST_FILES, split_logs

JOB = "02000000"


def write(folder: Path, pid: int, out: str = "", error: str = "", job: str = JOB) -> None:
    for suffix, text in (("out", out), ("err", error)):
        (folder / f"worker-{pid:056x}-{job}-{pid}.{suffix}").write_text(f":job_id:{job}\n{text}")


def line(actor: str, message: str) -> str:
    return json.dumps({"time": "2026-01-31T12:00:00.123+00:00", "run": "a", "actor": actor, "message": message}) + "\n"


def test_json_lines_and_last_words_of_an_actor_are_parted(tmp_path: Path) -> None:
    out = ":actor_name:RolloutEngine\n" + line("engine-0", "up") + "printed\n" + line("engine-0", "failed")
    write(tmp_path, 17, out, ":actor_name:RolloutEngine\n!!!!!!! Segfault encountered !!!!!!!\n")
    (tmp_path / "raylet.out").write_text("killed a worker: out of memory\n")
    assert split_logs(tmp_path, JOB, host="h") == {
        "engine-0-h-17.jsonl": line("engine-0", "up") + line("engine-0", "failed"),
        "engine-0-h-17.log": "printed\n!!!!!!! Segfault encountered !!!!!!!\n",
        "raylet-h.log": "killed a worker: out of memory\n",
    }


def test_other_jobs_and_silent_workers_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, 17, line("engine-0", "of another job"), job="01000000")
    write(tmp_path, 18)
    assert split_logs(tmp_path, JOB, host="h") == {}


def test_a_process_that_was_there_before_the_job_is_known_by_its_mark(tmp_path: Path) -> None:
    for pid, job in ((17, JOB), (18, "01000000")):
        (tmp_path / f"worker-{pid:056x}-ffffffff-{pid}.out").write_text(f":job_id:{job}\n" + line("reward-0", "up"))
    (tmp_path / f"worker-{19:056x}-ffffffff-19.out").write_text("idle\n")
    assert split_logs(tmp_path, JOB, host="h") == {"reward-0-h-17.jsonl": line("reward-0", "up")}


def test_a_process_without_json_is_named_after_its_class(tmp_path: Path) -> None:
    write(tmp_path, 17, error=":actor_name:LearnerRank\nImportError: no torch\n")
    write(tmp_path, 18, "a task\n")
    write(tmp_path, 19, '{"time": "2026-01-31T12:00')  # it died in the middle of it
    assert sorted(split_logs(tmp_path, JOB, host="h")) == ["LearnerRank-h-17.log", "worker-h-18.log", "worker-h-19.log"]


def test_a_name_that_leads_elsewhere_is_not_taken(tmp_path: Path) -> None:
    """Whatever a user's reward function prints."""
    write(tmp_path, 17, line("../../config", "mine"))
    assert list(split_logs(tmp_path, JOB, host="h")) == ["worker-h-17.jsonl"]


def test_of_a_long_file_the_end_is_kept_in_whole_lines(tmp_path: Path) -> None:
    write(tmp_path, 17, "".join(f"line {number}\n" for number in range(100_000)))
    (text,) = split_logs(tmp_path, JOB, host="h").values()
    assert MOST_BYTES - 100 < len(text) <= MOST_BYTES
    assert text.startswith("line ")
    assert text.endswith("line 99999\n")


def test_of_many_processes_the_newest_are_kept(tmp_path: Path) -> None:
    for pid in range(1, MOST_FILES + 11):
        write(tmp_path, pid, "said\n")
        os.utime(next(tmp_path.glob(f"*-{pid}.out")), (pid, pid))
    found = split_logs(tmp_path, JOB, host="h")
    assert len(found) == MOST_FILES
    assert "worker-h-10.log" not in found
    assert "worker-h-11.log" in found
