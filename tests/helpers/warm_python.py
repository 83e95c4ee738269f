"""A Python that has its imports done: `python -IS warm_python.py WORDS...` does what `python WORDS...` does.

Importing torch, vLLM and DeepSpeed takes a process longer than all it does in a test, and the suite starts a hundred
such processes. Here they are forked from a server that has imported what they need. Arguments, environment, folder and
open files are those of the process that asks, which waits and ends as its fork ends:

    raylet -- python -IS warm_python.py ... -- asks --> server (one a kind, see `PRELOADED`)
                  ends as the worker ends   <-- tells --   `-- fork: the worker

The first to ask for a kind has the process that called `offer` start its server, which ends with that process. What is
tested for how it starts or dies is started cold: see `cold`.
"""

import atexit
import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-IS", __file__)
FOLDER, OWNER, RAY_JOB = "WARM_PYTHON_FOLDER", "WARM_PYTHON_OWNER", "RAY_JOB_CONFIG_JSON_ENV_VAR"
PATIENCE = "RAY_worker_register_timeout_seconds"  # the first of a kind waits for its server's imports
PR_SET_PDEATHSIG = 1
SIZE = struct.Struct("!i")
SERVERS: list[subprocess.Popen[bytes]] = []  # that this process has started

# By a variable that only processes of a kind have: what they import. A server has the variables of the first to ask,
# for torch, vLLM and the C library read theirs once: those of a kind are the same in all tests.
WORKER = "ray._private.workers.default_worker"
ENGINE, RANK, REWARD, OTHER = "VLLM_ENABLE_V1_MULTIPROCESSING", "CUBLAS_WORKSPACE_CONFIG", "RAY_RAYLET_PID", ""
AUTO, QWEN2_VL = "transformers.models.auto", "transformers.models.qwen2_vl"
PRELOADED = {
    ENGINE: f"{WORKER} rollout.engine vllm vllm.v1.engine.llm_engine vllm.v1.worker.cpu_worker "
    f"vllm.model_executor.models.qwen2_vl {QWEN2_VL}.processing_qwen2_vl",
    RANK: f"{WORKER} learner.trainer.rank learner.trainer.zero deepspeed.module_inject.auto_ep_layer "
    f"{AUTO}.modeling_auto {QWEN2_VL}.modeling_qwen2_vl torchvision",
    REWARD: f"{WORKER} rollout.reward_actor",
    OTHER: "ray learner.driver.run learner.driver.open_run learner.evaluation.args datasets learner.embedded.tokenizer "
    f"{AUTO}.processing_auto {AUTO}.video_processing_auto {QWEN2_VL}.processing_qwen2_vl",
}


def offer(environment: MutableMapping[str, str]) -> None:
    """Let processes of `environment`, and the workers of any Ray they start, be warm while this process lives."""
    folder = tempfile.mkdtemp(prefix="rc", dir="/tmp")  # socket paths are short
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    job = {"runtime_env": {"py_executable": " ".join(COMMAND)}}
    environment.update({FOLDER: folder, OWNER: str(os.getpid()), RAY_JOB: json.dumps(job), PATIENCE: "300"})
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/starter")
    listener.listen(128)
    threading.Thread(target=_start_servers, args=(listener, Path(folder)), daemon=True).start()
    atexit.register(_end_servers)


def _start_servers(listener: socket.socket, folder: Path) -> None:
    """Start the servers that others ask for: one that a run started itself would end with that run."""
    while True:
        asker, _ = listener.accept()
        with asker, asker.makefile("rb") as stream:
            kind, environment = json.loads(stream.read(*SIZE.unpack(stream.read(SIZE.size))))
            _start_server(kind, folder, environment)
            asker.sendall(b"started")


def _end_servers() -> None:
    for server in SERVERS:
        server.terminate()
    for server in SERVERS:
        server.wait(10)


def _start_server(kind: int, folder: Path, environment: Mapping[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener, (folder / f"log{kind}").open("w") as log:
        listener.bind(str(folder / f"socket{kind}"))
        listener.listen(128)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.warm_python", "serve", str(listener.fileno()), str(kind)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    SERVERS.append(server)


def cold(environment: Mapping[str, str]) -> dict[str, str]:
    """The same environment for processes, and workers of their Ray, that import for themselves."""
    return {name: value for name, value in environment.items() if name not in (FOLDER, OWNER, RAY_JOB, PATIENCE)}


def main() -> int:
    """Ask for a fork, wait for it and return its exit code, or end by the signal that ended it."""
    _end_with_parent()  # a worker with its raylet
    kind = next(number for number, name in enumerate(PRELOADED) if name in os.environ or not name)
    with _connect(kind) as server:
        asked = json.dumps([sys.argv[1:], dict(os.environ), str(Path.cwd())]).encode()
        socket.send_fds(server, [SIZE.pack(len(asked))], [0, 1, 2])
        server.sendall(asked)
        answer = server.recv(SIZE.size)
    if not answer:
        raise SystemExit(f"the server has died: {_path(kind, 'log').read_text()}")
    (code,) = SIZE.unpack(answer)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return int(code)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _path(kind: int, name: str) -> Path:
    return Path(os.environ[FOLDER], f"{name}{kind}")


def _connect(kind: int) -> socket.socket:
    """To the server, which is started if there is none."""
    server = socket.socket(socket.AF_UNIX)
    address = _path(kind, "socket")
    with _path(kind, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            asked = json.dumps([kind, dict(os.environ)]).encode()
            with socket.socket(socket.AF_UNIX) as starter:
                starter.connect(str(Path(os.environ[FOLDER], "starter")))
                starter.sendall(SIZE.pack(len(asked)) + asked)
                starter.recv(SIZE.size)
    server.connect(str(address))
    return server


def serve(listener: socket.socket, kind: int) -> None:
    """Fork for whoever asks, and tell how each fork ended; until the owner ends."""
    import gc

    owner = os.pidfd_open(int(os.environ[OWNER]))
    os.environ[REWARD] = str(os.getpid())  # Ray reads it once, and its workers end when that process has ended
    _preload(list(PRELOADED)[kind])
    gc.freeze()  # a collection would copy the pages that forks share
    events = select.poll()
    events.register(listener, select.POLLIN)
    events.register(owner, select.POLLIN)
    pids: dict[int, int] = {}  # by the file of whoever asked
    askers: dict[int, socket.socket] = {}  # by the file that becomes readable when its fork ends
    while True:
        for file, _ in events.poll():
            if file == owner:
                for pid in pids.values():
                    os.kill(pid, signal.SIGTERM)
                return
            if file == listener.fileno():
                asker, _ = listener.accept()
                pid = os.fork()
                if not pid:
                    _become(asker)
                ended = os.pidfd_open(pid)
                pids[asker.fileno()], askers[ended] = pid, asker
                events.register(ended, select.POLLIN)
                events.register(asker, 0)  # only a hang-up
            elif file in askers:
                asker = askers.pop(file)
                _, status = os.waitpid(pids.pop(asker.fileno()), 0)
                events.unregister(file)
                with contextlib.suppress(KeyError):
                    events.unregister(asker)
                with asker, contextlib.suppress(OSError):
                    asker.sendall(SIZE.pack(os.waitstatus_to_exitcode(status)))
                os.close(file)
            elif file in pids:  # whoever asked was killed
                os.kill(pids[file], signal.SIGTERM)
                events.unregister(file)


def _preload(kind: str) -> None:
    """Import what processes of a kind import, without what they leave out themselves."""
    from common.lean_imports import import_transformers, leave_out_compiler
    from common.torch_build import installed_device

    on_cpu = installed_device() == "cpu"
    bring_back = leave_out_compiler() if on_cpu and kind != REWARD else None
    if kind == ENGINE:
        from rollout import vllm_patches

        if on_cpu:
            vllm_patches.leave_out_server()
            vllm_patches.leave_out_triton()
    if kind != REWARD:
        import_transformers()
    for name in PRELOADED[kind].split():
        importlib.import_module(name)
    if kind == OTHER and bring_back:
        bring_back()


def _become(asker: socket.socket) -> NoReturn:
    """In the fork: take over what belongs to whoever asked, and run what it was told to run."""
    import runpy

    os.setsid()
    _end_with_parent()
    head, files, _, _ = socket.recv_fds(asker, SIZE.size, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    with asker, asker.makefile("rb") as stream:
        words, environment, folder = json.loads(stream.read(*SIZE.unpack(head)))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if words[0] == "-u":
        words = words[1:]
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], folder
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
    else:
        sys.exit(main())
