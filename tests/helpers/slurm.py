"""A real Slurm of two nodes: munge, slurmctld and two slurmd, each on a host of its own (see `hosts.py`)."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import hosts, jobs
from tests.helpers.hosts import Host

CONTROL, NODES = "control", ("node-0", "node-1")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
SCRIPT = jobs.ROOT / "deploy/slurm/train.sbatch"
ALIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SIGNALING")
_PATH = f"{os.environ['PATH']}:/usr/sbin"
# Jobs of the partition `urgent` take the nodes from those of `spare`, after the grace.
_CONFIGURATION = """
ClusterName=rollcall
SlurmctldHost={control}({control_address})
SlurmUser=root
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=2
SchedulerParameters=bf_interval=2,sched_min_interval=100000,batch_sched_delay=1
ReturnToService=2
{nodes}
PartitionName=spare Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """A Slurm that is up."""

    control: Host
    nodes: tuple[Host, ...]
    folder: Path

    def say(self, *words: str, environment: Mapping[str, str] = {}) -> str:
        """Run one of Slurm's commands on the control host and return what it printed."""
        has = {"SLURM_CONF": str(self.folder / "slurm.conf"), **environment}
        chosen = [f"{name}={value}" for name, value in has.items()]
        return self.control.run(["env", f"--chdir={jobs.ROOT}", "-u", "RAY_AUTH_TOKEN", *chosen, *words])

    def submit(self, log: Path, *words: str, options: tuple[str, ...] = (), environment: Mapping[str, str] = {}) -> str:
        """Submit the script of `deploy/slurm/`, its output in `log`. Return the number of the job."""
        # The disk that every node has for itself.
        command = ["sbatch", "--parsable", f"--output={log}", *options, str(SCRIPT), *words]
        return self.say(*command, environment={"TMPDIR": str(hosts.PRIVATE), **environment}).strip()

    def look(self, job: str) -> dict[str, str]:
        """Return what Slurm says of a job, by field."""
        return dict(re.findall(r"(\w+)=(\S*)", self.say("scontrol", "show", "job", job, "--oneliner")))

    def wait_for(
        self, what: str, condition: Callable[[], object], *, job: str | None = None, log: Path | None = None
    ) -> None:
        """Wait until a condition holds; fails at the deadline, and where the job that is to bring it about ends."""
        deadline = time.monotonic() + 400
        while not condition():
            told = log.read_text() if log and log.exists() else ""
            assert time.monotonic() < deadline, f"no {what}:\n{told}"
            assert job is None or self.look(job)["JobState"] in ALIVE, f"ended before {what}:\n{told}"
            time.sleep(0.2)

    def wait_for_end(self, job: str) -> str:
        """Return the state in which a job ended."""
        self.wait_for(f"end of job {job}", lambda: self.look(job)["JobState"] not in ALIVE)
        return self.look(job)["JobState"]


def find_obstacle() -> str | None:
    """Return why there can be no Slurm here; None where there can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    return f"not installed: {', '.join(missing)}" if missing else hosts.find_obstacle()


@contextmanager
def start_slurm(folder: Path) -> Iterator[Slurm]:
    """Bring up Slurm with two nodes of one CPU each; at the end all that it started is gone."""
    folder.mkdir()
    with ExitStack() as parts:
        up = parts.enter_context(hosts.up(CONTROL, *NODES))
        lines = [f"NodeName={name} NodeAddr={up[name].address} CPUs=1 RealMemory=1000" for name in NODES]
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                control=CONTROL,
                control_address=up[CONTROL].address,
                folder=folder,
                nodes="\n".join(lines),
            )
        )
        (folder / "state").mkdir()
        _start_munge(up[CONTROL], folder)
        has = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}
        up[CONTROL].start(["slurmctld", "-D", "-i"], folder / "slurmctld.log", has)
        for name in NODES:
            up[name].start(["slurmd", "-D", "-N", name], folder / f"{name}.log", has)
        slurm = Slurm(control=up[CONTROL], nodes=tuple(up[name] for name in NODES), folder=folder)
        try:
            slurm.wait_for("nodes", lambda: _count_idle(slurm) == len(NODES))
        except AssertionError as error:
            logs = [path.read_text() for path in sorted(folder.glob("*.log"))]
            raise AssertionError("\n".join(logs)) from error
        yield slurm


def _start_munge(host: Host, folder: Path) -> None:
    """Start the authentication service. Its socket is a file, so one serves all hosts."""
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    words = [f"--key-file={key}", f"--socket={folder}/munge.sock", f"--pid-file={folder}/munge.pid"]
    words += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    host.start(["munged", "--foreground", "--force", *words], folder / "munged.log", {"PATH": _PATH})
    deadline = time.monotonic() + 20
    while not (folder / "munge.sock").exists():
        assert time.monotonic() < deadline, (folder / "munged.log").read_text()
        time.sleep(0.05)


def _count_idle(slurm: Slurm) -> int:
    try:
        told = slurm.say("sinfo", "--noheader", "--Node", "--partition=spare", "--format=%T")
    except AssertionError:  # the controller is not up yet
        return 0
    return told.split().count("idle")
