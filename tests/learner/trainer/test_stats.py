"""The figures of a step of several optimizer steps."""

from __future__ import annotations

import math
from typing import Any

from common.types import GroupGap
from learner.trainer.stats import RankStats, average_updates


def update(*, applied: bool, prompt: str = "train/0", **changes: Any) -> RankStats:
    values: dict[str, Any] = {
        "loss": 1.0,
        "kl": 0.5,
        "entropy": 6.0,
        "clipped": 1.0,
        "tokens": 4.0,
        "by_lag": {},
        "gaps": {prompt: GroupGap(total=1e-6, largest=1e-6, tokens=4)},
        "grad_norm": 2.0,
        "updates": int(applied),
        "skipped": int(not applied),
        "lr": 0.1,
        "probabilities": {},
    }
    return RankStats(**values | changes)


NAN: dict[str, Any] = {"loss": math.nan, "kl": math.nan, "entropy": math.nan, "grad_norm": math.nan}


def test_updates_that_were_left_out_do_not_spoil_the_figures_of_the_others() -> None:
    found = average_updates(
        [update(applied=True), update(applied=False, prompt="train/1", **NAN), update(applied=True, loss=3.0)]
    )
    assert (found.updates, found.skipped) == (2, 1)
    assert (found.loss, found.kl, found.grad_norm) == (2.0, 0.5, 2.0)
    assert (found.entropy, found.tokens, found.clipped) == (12.0, 8.0, 2.0)
    assert found.gaps.keys() == {"train/0", "train/1"}, "engines and learner are compared all the same"


def test_where_all_were_left_out_there_is_no_number() -> None:
    found = average_updates([update(applied=False, **NAN)] * 2)
    assert (found.updates, found.skipped) == (0, 2)
    assert math.isnan(found.loss) and math.isnan(found.grad_norm)
