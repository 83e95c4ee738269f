"""Ten times: reserve the places of a run, start a process in each, and print the host of each as one line of JSON.

python -m tests.helpers.ten_starts KEY=VALUE...
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import ray

from common.config.cli import parse
from common.placement import schedule_in
from learner.driver.places import reserve_places


class Part:
    """Stands for a rank or an engine, which take the same way into their place."""

    def host(self) -> str:
        return socket.gethostname()


def find_hosts(actor: Any, seats: Sequence[tuple[Any, int, float]]) -> list[str]:
    """Return the host of a process in each seat: a place, the bundle in it, and its CPUs."""
    parts = [
        actor.options(num_cpus=cpus, scheduling_strategy=schedule_in(place, bundle=bundle)).remote()
        for place, bundle, cpus in seats
    ]
    return list(ray.get([part.host.remote() for part in parts], timeout=60))


def main() -> None:
    """Print {"learner": [host, ...], "engines": [host, ...]} for each start."""
    config = parse(sys.argv[1:]).config
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    actor: Any = ray.remote(Part)
    for _ in range(10):
        with reserve_places(config) as places:
            ranks = [(places.learner, bundle, config.learner.cpus_per_rank) for bundle in range(config.learner.ranks)]
            engines = [(place, 0, config.rollout.cpus_per_engine) for place in places.engines]
            found = {name: find_hosts(actor, seats) for name, seats in (("learner", ranks), ("engines", engines))}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
