"""A run of `learner.main` whose engines are made to differ from its learner, as MISMATCH in the environment says:
`bfloat16`, `late` (the weights of the step before), or `bfloat16+late`. For `mismatch`, which measures the correction.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

from common.config.schema import Config
from common.types import WeightManifest
from learner import main as rollcall
from learner.driver import open_run
from learner.driver.weight_sync import WeightSync
from rollout.spec import EngineSpec, engine_spec

LIMITS = ["learner.max_logprob_gap=1000", "learner.mean_logprob_gap=1000", "learner.probe_gap=1000"]


class LateSync(WeightSync):
    """Loads the weights that the learner had one publication ago."""

    _before: WeightManifest | None = None

    def publish(self, version: int) -> None:
        """Make the engines hold the weights of the step before `version`."""
        now = self._learner.publish(version)
        self._fleet.publish(self._before or now)
        self._before = now


def make_rough_spec(config: Config, *, model_path: str, banned: tuple[int, ...]) -> EngineSpec:
    """Return the spec of engines that compute in bfloat16, whatever the learner does."""
    return replace(engine_spec(config, model_path=model_path, banned=banned), dtype="bfloat16")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the run, as learner.main takes them")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words:
        parser().parse_args(words)
    wanted = os.environ["MISMATCH"].split("+")
    with ExitStack() as changes:
        if "bfloat16" in wanted:
            changes.enter_context(patch.object(open_run, "engine_spec", make_rough_spec))
        if "late" in wanted:
            changes.enter_context(patch.object(open_run, "WeightSync", LateSync))
        return rollcall.main([*words, *LIMITS])


if __name__ == "__main__":
    raise SystemExit(main())
