"""Four hosts with a Ray cluster on them: a head without CPUs, two hosts for learner ranks, one for engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.helpers import jobs
from tests.helpers.hosts import PRIVATE, Host

GCS, DASHBOARD = 6379, 8265
RECIPE = (
    *("--config", "deploy/recipes/digits.yaml", "steps=4", "learner.warmup_steps=1", "evaluation.limit=20"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.engines=2", "learner.ranks=2"),
    *("checkpoint.every=2", "tracking.samples_every=0"),
)


@dataclass(slots=True, kw_only=True)
class Cluster:
    """A Ray cluster over several hosts."""

    hosts: Mapping[str, Host]
    logs: Path

    @property
    def head(self) -> Host:
        return self.hosts["head"]

    def start_ray(self) -> None:
        """Start Ray on every host, with the part of a host's name before the number as its label `role`."""
        for host in self.hosts.values():
            self.start_node(host)
        for host in self.hosts.values():
            jobs.wait_for(f"Ray on {host.name}", partial(self._is_up, host), self.head.init)

    def start_node(self, host: Host) -> None:
        role = host.name.split("-")[0]
        cpus = {"head": 0, "learner": 1, "rollout": 2}[role]
        where = ["--head", f"--port={GCS}", f"--dashboard-port={DASHBOARD}"]
        if host is self.head:
            where += [f"--dashboard-host={host.address}", f"--temp-dir={PRIVATE}/ray"]
        else:
            where = [f"--address={self.head.address}:{GCS}"]
        words = [*where, f"--node-ip-address={host.address}", f"--num-cpus={cpus}", f"--labels=role={role}"]
        words += ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        host.start(["ray", "start", *words], self.logs / f"{host.name}.log", self.environment(host))

    def environment(self, host: Host) -> dict[str, str]:
        """Return what is a host's own: its cache, on its own disk."""
        return {"XDG_CACHE_HOME": f"{PRIVATE}/cache", "RAY_TMPDIR": str(PRIVATE)}

    def submit(self, *words: str, timeout_s: float = 240) -> str:
        """Run `ray job submit` from the head to its end and return the console; an exit code of 1 is no failure."""
        submit = ["env", f"RAY_API_SERVER_ADDRESS=http://{self.head.address}:{DASHBOARD}", "ray", "job", "submit"]
        command = [*submit, "--working-dir", str(jobs.ROOT), "--", "python", "-m", "learner.main", *RECIPE, *words]
        return self.head.run(command, timeout_s=timeout_s, check=False)

    def _is_up(self, host: Host) -> bool:
        log = self.logs / f"{host.name}.log"
        return log.exists() and "Ray runtime started" in log.read_text()
