"""`python -m tests.faults.spill`: weights of seven versions at once in an object store that holds three.

Each batch is sampled with its own version, whose bytes every engine checks. Prints the bytes that Ray spilled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray

from rollout.fleet.fleet import RolloutFleet
from tests.faults.fleets import Events, check
from tests.helpers.modelled import Model, ModelledEngine, make_config, make_manifest, make_requests

VERSIONS, MEGABYTES = 7, 25.0


def main() -> None:
    """Run it in a Ray of its own."""
    with tempfile.TemporaryDirectory(prefix="rc", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=90_000_000,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            print(spill(Path(folder)))
        finally:
            ray.shutdown()


def spill(folder: Path) -> int:
    """Ask a batch of every version before the first is sampled. Return the bytes that were spilled."""
    spec: Any = Model(service_s=0.05)
    events = Events()
    fleet = RolloutFleet(make_config(2), spec, on_event=events, kind=ModelledEngine)
    try:
        fleet.ready()
        batches = []
        for version in range(VERSIONS):
            fleet.publish(make_manifest(version, megabytes=MEGABYTES))
            batches.append(fleet.ask(make_requests(40)))
        spilled = sum(path.stat().st_size for path in folder.rglob("ray_spilled_objects*/*") if path.is_file())
        for version, batch in enumerate(batches):
            check(make_requests(40), list(fleet.take(batch)), version)
        assert not events.of("engine_lost"), events
        assert {one.version for one in fleet.take_loads()} == set(range(VERSIONS))
    finally:
        fleet.close()
    return spilled


if __name__ == "__main__":
    main()
