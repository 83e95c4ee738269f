"""`--help`: every section and key, with type, default and what it is for."""

from __future__ import annotations

import json

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from common.config.schema import Config
from common.config.settings import keys, kind, sections

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

Without --config the embedded recipe deploy/recipes/digits.yaml runs.
The defaults below hold under a recipe of your own.
"""


def print_usage() -> None:
    console = Console(highlight=False)
    console.print(Text(USAGE))
    for section in ("", *(name for name in Config.model_fields if name in sections())):
        model = Config.model_fields[section].annotation if section else Config
        console.print(Text.assemble((section or "run", "bold"), f": {model.__doc__}\n"))
        for key, schema in keys().items():
            if key.rpartition(".")[0] == section:
                default = json.dumps(schema["default"]).strip('"')
                console.print(Text.assemble("  ", (key, "cyan"), f"  {kind(schema)}  ", (f"default {default}", "dim")))
                if about := schema.get("description", "").replace("\n", " "):
                    console.print(Padding(Text(about), (0, 0, 0, 6)))
        console.print()
