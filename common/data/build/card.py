"""The README.md of a set: what it holds, how it was made, and the hashes of its files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from common.data.build.write import Written

_TEXT = """\
# {name}

{classes} classes, in the columns of CLS-RL: `problem`, `image`, `image_width`, `image_height`, `solution`. Made by

```sh
{command}
```

| split | rows | classes its questions list from | sha256 of the file |
|---|---|---|---|
{table}
"""


def card(
    name: str, argv: Sequence[str], made: Mapping[str, Any], written: Mapping[str, Written], offered: Mapping[str, int]
) -> str:
    """Return the card as text.

    Args:
        argv: arguments of the command.
        made: how the set was made: source, shots, seed, and so on.
        written: files by split.
        offered: how many classes the questions of a split draw their lists from.
    """
    front = {
        "pretty_name": name,
        "task_categories": ["image-classification"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}-*.parquet"} for split in written],
            }
        ],
        "rollcall": {
            **made,
            "splits": {
                split: {"rows": file.rows, "classes": offered[split], "sha256": file.sha256}
                for split, file in written.items()
            },
        },
    }
    table = "\n".join(
        f"| {split} | {file.rows} | {offered[split]} | `{file.sha256}` |" for split, file in written.items()
    )
    text = _TEXT.format(
        name=name,
        classes=made["classes"],
        command=shlex.join(["python", "-m", "common.data.build", *argv]),
        table=table,
    )
    notes = "".join(f"\n- {note}" for note in made["notes"])
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{text}{notes and notes + chr(10)}"
