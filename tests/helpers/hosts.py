"""Several hosts on one machine: each has its own network, processes, name, and a private disk.

A host is a set of Linux namespaces, joined to the others by a bridge. Its process 1 holds them open: whoever kills it
ends everything that runs on the host, as a power cut would. Needs root and iproute2.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers import jobs, warm_python

PRIVATE = Path("/mnt")  # on every host an empty disk of its own
TOKEN = "1" * 64
_COUNT = itertools.count()


@dataclass(slots=True, kw_only=True)
class Host:
    """A host that is up."""

    name: str
    address: str
    link: str  # its end of the cable, on the machine that plays all hosts
    init: subprocess.Popen[str]  # the parent of its process 1
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, words: Sequence[str]) -> list[str]:
        """Return what runs `words` on the host."""
        return ["nsenter", f"--target={self._inner()}", "--all", "--", *words]

    def start(self, words: Sequence[str], log: Path, environment: Mapping[str, str] = {}) -> subprocess.Popen[str]:
        """Start a command on the host, in the root of the checkout; its console goes to `log`."""
        words = ["env", f"--chdir={jobs.ROOT}", *[f"{name}={value}" for name, value in environment.items()], *words]
        with log.open("a") as console:
            process = subprocess.Popen(
                self.command(words),
                env=_environment(),
                stdout=console,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        self.started.append(process)
        return process

    def run(self, words: Sequence[str], *, timeout_s: float = 60, check: bool = True) -> str:
        """Run a command on the host to its end and return what it printed."""
        done = subprocess.run(
            self.command(words), env=_environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def cut_power(self) -> None:
        """End every process of the host at once."""
        for process in (self.init, *self.started):
            process.kill()
            process.wait(30)

    def _inner(self) -> str:
        (child,) = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        return child


def find_obstacle() -> str | None:
    """Return why this machine cannot play several hosts; None where it can."""
    for tool in ("ip", "unshare", "nsenter", "setpriv"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "mount", "-t", "tmpfs", "none", str(PRIVATE)],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not allowed: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def up(*names: str) -> Iterator[dict[str, Host]]:
    """Bring hosts up, with the addresses 10.77.N.1, 10.77.N.2, ... in order; at the end all of them are gone."""
    number = os.getpid() + next(_COUNT) * 7919  # other workers and other tests have theirs
    net, bridge = f"10.77.{number % 250 + 1}", f"rcbr{number % 100000}"
    with ExitStack() as parts:
        _ip("link", "add", bridge, "type", "bridge")
        parts.callback(_ip, "link", "delete", bridge)
        _ip("addr", "add", f"{net}.254/24", "dev", bridge)  # of the machine that plays them
        _ip("link", "set", bridge, "up")
        hosts = {}
        for number, name in enumerate(names, 1):
            hosts[name] = parts.enter_context(_up(name, f"{net}.{number}", bridge, number))
        yield hosts


@contextmanager
def _up(name: str, address: str, bridge: str, number: int) -> Iterator[Host]:
    # Like Debian: a host's own name is a loopback address.
    script = f"""
        mount -t tmpfs none {PRIVATE}
        mount -t tmpfs none /dev/shm
        echo "127.0.0.1 localhost
127.0.1.1 {name}" > {PRIVATE}/hosts
        mount --bind {PRIVATE}/hosts /etc/hosts
        hostname {name}
        echo up
        sleep infinity
        exit  # so process 1 is the shell, which reaps what others leave
    """
    isolated = [
        "unshare",
        "--net",
        "--mount",
        "--propagation=private",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--mount-proc",
    ]
    init = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", *isolated, "--kill-child", "sh", "-ec", script],
        stdout=subprocess.PIPE,
        text=True,
    )
    link = f"{bridge}-{number}"
    host = Host(name=name, address=address, link=link, init=init)
    try:
        assert init.stdout is not None
        with init.stdout:
            assert init.stdout.readline() == "up\n"
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host._inner())  # noqa: SLF001
        _ip("link", "set", link, "master", bridge, "up")
        for words in (
            ["addr", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            host.run(["ip", *words])
        yield host
    finally:
        host.cut_power()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


def _environment() -> dict[str, str]:
    """What every process of a host has: this Python, one thread, and the token of the cluster."""
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(jobs.ROOT)}
    return {**warm_python.cold(os.environ), **here, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
