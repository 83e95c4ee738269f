"""The ends of what the processes of a run wrote to their outputs, copied into the run folder before Ray is left.

Ray keeps them in its session folder on each host, which goes with the cluster. A host that is gone took its own along.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.errors import describe_cause
from common.placement import wait
from learner.driver.telemetry.driver_log import LOGS
from learner.storage.files import replace_text
from learner.tracking.tracker import Tracker

MOST_BYTES = 256 << 10  # of the end of a file
RAYLET_BYTES = 32 << 10
MOST_FILES = 200  # of a host, the newest
MOST_HOSTS = 64
ANSWER_S = 5.0  # of all other hosts together: whoever ends a run may wait for it
NO_JOB = "ffffffff"  # in names of files of processes that Ray started before it knew for whom
MARK_BYTES = 4 << 10  # of the beginning of a file, where the mark is
ACTOR = re.compile(r"^:actor_name:(\w+)$", re.MULTILINE)  # Ray writes it into the outputs of an actor


def copy_worker_logs(run_folder: Path, tracker: Tracker) -> None:
    """Copy the ends of outputs on every host to `logs/`. Whatever fails is an event, and no more.

    Of an actor `engine-0` with process 17 on host `a` come `engine-0-a-17.jsonl`, what it logged as JSON, and
    `engine-0-a-17.log`, all else it wrote: a trace, or the last words of a crash.
    """
    try:
        for name, text in _collect():
            path = run_folder / LOGS / name
            path.parent.mkdir(exist_ok=True)
            replace_text(path, text)
    except Exception as error:  # noqa: BLE001  # the run is over, and what Ray raises is in no list
        tracker.event("worker_logs_failed", why=describe_cause(error))


def _collect() -> Iterator[tuple[str, str]]:
    """Yield name and text of every log: of this host at once, of others once they answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    job, own = context.get_job_id(), context.get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own][:MOST_HOSTS]
    look: Any = ray.remote(num_cpus=0, max_retries=0)(read_logs)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(job)
        for node in others
    ]
    yield from read_logs(job).items()
    if asked:
        done = wait(asked, timeout_s=ANSWER_S)
        for ref in done:
            yield from ray.get(ref).items()


def read_logs(job: str) -> Mapping[str, str]:
    """Return what processes of a job wrote on this host, by the name of its file in `logs/`."""
    from ray._private import worker

    node: Any = worker._global_node  # noqa: SLF001  # Ray has no public way to its session folder
    return split_logs(Path(node.get_logs_dir_path()), job, host=socket.gethostname())


def split_logs(folder: Path, job: str, *, host: str) -> dict[str, str]:
    """Return the logs of a job out of a folder of Ray's, its worker processes named after their actors.

    Beside them comes the end of the raylet's own: it says whom it killed for want of memory.
    """
    outputs = [path for path in folder.glob("worker-*.out") if _is_of(job, path)]
    found: dict[str, str] = {}
    for path in sorted(outputs, key=lambda path: path.stat().st_mtime)[-MOST_FILES:]:
        out, error = _read_end(path), _read_end(path.with_suffix(".err"))
        lines, other = _divide(out)
        pid = path.stem.rpartition("-")[2]
        name = f"{_find_actor(lines, out + error)}-{host}-{pid}"
        found |= {f"{name}.jsonl": lines} if lines else {}
        other += _divide(error)[1]
        found |= {f"{name}.log": other} if other.strip() else {}
    raylet = "".join(_read_end(folder / f"raylet.{kind}", RAYLET_BYTES) for kind in ("out", "err"))
    return found | ({f"raylet-{host}.log": raylet} if raylet else {})


def _is_of(job: str, path: Path) -> bool:
    """Say whether a file is of a job: by its name, or by Ray's mark where the process was there before any job."""
    named = path.stem.split("-")[-2:-1]
    if named != [NO_JOB]:
        return named == [job]
    try:
        with path.open("rb") as file:
            return f":job_id:{job}\n".encode() in file.read(MARK_BYTES)
    except OSError:
        return False


def _divide(text: str) -> tuple[str, str]:
    """Return the lines that are JSON logs, and the others without Ray's marks."""
    lines, other = [], []
    for line in text.splitlines(keepends=True):
        if line.startswith('{"time": ') and line.endswith("}\n"):  # a process may die in the middle of one
            lines.append(line)
        elif not line.startswith((":actor_name:", ":job_id:", ":task_name:")):
            other.append(line)
    return "".join(lines), "".join(other)


def _find_actor(lines: str, text: str) -> str:
    """Return the name of the actor that wrote them: its own, or else that of its class."""
    try:
        first = parse_json(lines.splitlines()[0]) if lines else {}
    except ValueError:  # whatever a reward function prints
        first = {}
    named = first.get("actor") if isinstance(first, dict) else None
    if isinstance(named, str) and re.fullmatch(r"[\w-]+", named):
        return named
    classes = ACTOR.findall(text)
    return str(classes[-1]) if classes else "worker"


def _read_end(path: Path, most: int = MOST_BYTES) -> str:
    """Return the end of a file, from the beginning of a line; "" where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            data = file.read(most)
    except OSError:
        return ""
    if size > most:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")
