"""Half a minute of the soak. `python -m tests.faults.soak --minutes 10` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import soak


@pytest.mark.engine
def test_half_a_minute_of_faults_loses_no_group_and_leaks_nothing(tmp_path: Path) -> None:
    verdict = soak(tmp_path / "run", seconds=30.0, every_s=2.5)
    assert verdict.violations == ()
    assert verdict.dropped == 0
    assert verdict.groups == 32 * verdict.steps > 0
    assert sum(verdict.strikes.values()) >= 5, "the faults struck"
    assert sum(verdict.heals.values()) >= 2, "and were healed"
    assert verdict.effective > 0.4, "0.8 on a machine of its own, with a strike every five seconds"
    assert verdict.growth < 60, "MB; Python and Ray warm up in the first seconds"
