"""The table of faults names tests that there are, and all tests of this folder."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_the_table_of_faults_is_of_these_tests() -> None:
    named = {Path(name).name for name in re.findall(r"`([\w/]*test_\w+\.py)`", (HERE / "README.md").read_text())}
    assert named <= {path.name for path in HERE.parent.rglob("test_*.py")}
    assert named >= {path.name for path in HERE.glob("test_*.py")} - {Path(__file__).name}
