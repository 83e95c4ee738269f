"""`--help`: every section and key, with type, default and what it is for."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.text import Text

from common.config.settings import default, describe, kind, list_sections

USAGE = """\
python -m learner.main [--config RECIPE] [KEY VALUE ...]

  --config RECIPE  a YAML file; repeatable: later ones win, key by key
  KEY VALUE        --rollout.group-size 8, --rollout.group-size=8 or
                   rollout.group_size=8; lists and mappings as YAML
  --dry-run        resolve and check everything, start nothing
  --plan           print the memory it would take, part by part
  --profile steps=3:5
                   writes what every rank, engine and Ray did in steps 3 and 4
                   into the run's folder profile/, for Perfetto
  --print-config   print the resolved configuration, itself a recipe
  --help           this

Without --config the embedded recipe deploy/recipes/digits.yaml runs, or
digits-gpu.yaml where the GPU packages are installed.
The defaults below hold under a recipe of your own.
"""


def print_usage() -> None:
    """Print how the command line is written, then every section and key."""
    console = Console(highlight=False)
    console.print(Text(USAGE))
    for section in list_sections():
        console.print(Text.assemble((section.name or "run", "bold"), f": {section.about}\n"))
        for key, schema in section.keys.items():
            console.print(
                Text.assemble("  ", (key, "cyan"), f"  {kind(schema)}  ", (f"default {default(schema)}", "dim"))
            )
            console.print(
                Text(textwrap.indent(textwrap.fill(describe(schema), console.width - 6), " " * 6)), soft_wrap=True
            )
        console.print()
