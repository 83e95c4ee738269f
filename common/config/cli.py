"""From the command line, as `common.config.usage.USAGE` describes it, to one checked Config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from common.config.recipe import read_override, read_recipes
from common.config.renamed import explain_renamed
from common.config.schema import Config
from common.config.settings import Setting, find_nearest, keys, resolve, sections
from common.errors import ConfigError, raise_as
from common.torch_build import installed_device

DEFAULT_RECIPE = Path(__file__).parents[2] / "deploy/recipes/digits.yaml"
GPU_RECIPE = DEFAULT_RECIPE.with_name("digits-gpu.yaml")
FLAGS = ("--dry-run", "--print-config", "--plan")
START_RECIPE = "deploy/recipes/qwen2vl-2b.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """The configuration and the flags of one command line."""

    config: Config
    dry_run: bool  # resolve and check everything, place nothing
    print_config: bool  # print the configuration and stop
    plan: bool  # print the memory it would take and stop


def parse(argv: Sequence[str]) -> Invocation:
    """Read arguments, without the program's name, into a checked configuration. `--help` prints and exits.

    Raises:
        ConfigError: naming every key at fault, its value, where it came from and what it takes.
    """
    words = list(argv)
    flags: set[str] = set()
    recipes: list[Path] = []
    overrides: list[Setting] = []
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            from common.config.usage import print_usage  # rich is slow to import, and only help needs it

            print_usage()
            raise SystemExit(0)
        if word in FLAGS:
            flags.add(word)
            continue
        _refuse_unknown_option(word)
        name, text = _pair(word, words)
        if name == "--config":
            with raise_as(ConfigError, f"recipe {text} cannot be read", remedy="check the path"):
                recipes.append(Path(text).expanduser())
        elif name == "--profile":
            overrides += read_override("tracking.profile_steps", _steps(text))
        else:
            overrides += read_override(name.removeprefix("--").replace("-", "_"), text)
    config = resolve([*read_recipes(recipes or [find_default_recipe()]), *overrides])
    if not recipes:
        _refuse_foreign(config)
    return Invocation(
        config=config,
        dry_run="--dry-run" in flags,
        print_config="--print-config" in flags,
        plan="--plan" in flags,
    )


def find_default_recipe() -> Path:
    """Return the recipe of a command line without one: it runs on whatever device is installed for."""
    return GPU_RECIPE if installed_device() == "cuda" else DEFAULT_RECIPE


def dump(config: Config) -> str:
    """Return the whole configuration as a recipe: given to `--config`, it makes an equal Config."""
    values = config.model_dump(mode="json", exclude={"steps"} if config.epochs else None)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _refuse_unknown_option(word: str) -> None:
    """Raise ConfigError for a word like --dry_run, before it takes the next one as its value.

    A key that is none, with its value in the same word, is told together with all other problems.
    """
    name, equals, _ = word.partition("=")
    key = name.removeprefix("--").replace("-", "_")
    known = key in keys() or key in sections() or name in ("--config", "--profile") or explain_renamed(key)
    if not word.startswith("--") or known:
        return
    options = [*FLAGS, "--help", "--config", "--profile"]
    meant = get_close_matches(name.lower().replace("_", "-"), options, n=1, cutoff=0.75)
    meant = meant or [f"--{near}" for near in find_nearest(key)]
    if equals and not {*meant} & {*options}:
        return
    raise ConfigError(
        f"there is no option {name}",
        got=word,
        remedy=f"perhaps you meant {' or '.join(meant)}" if meant else "--help lists all options and keys",
    )


def _pair(word: str, rest: list[str]) -> tuple[str, str]:
    """Return name and value of the argument `word`; `--name value` takes its value from `rest`."""
    name, equals, text = word.partition("=")
    if not equals and not word.startswith("--"):
        raise ConfigError("an argument is neither a flag nor key=value", got=word, remedy=f"write {word}=VALUE")
    if not equals and rest and not rest[0].startswith("--"):
        text = rest.pop(0)
    if not text:
        raise ConfigError(f"{name} has no value", got=" ".join([word, *rest]), remedy=f"write {name}=VALUE (or null)")
    return name, text


def _steps(text: str) -> str:
    """Return `steps=3:5` as the key takes it: `[3, 5]`."""
    key, _, window = text.partition("=")
    first, colon, end = window.partition(":")
    if key != "steps" or not colon:
        raise ConfigError("--profile takes a range of steps", got=text, remedy="write --profile steps=3:5")
    return f"[{first}, {end}]"


def _refuse_foreign(config: Config) -> None:
    """Raise ConfigError for another model or data under the default recipe, whose other keys do not fit them."""
    for key, path in (("model.path", config.model.path), ("data.path", config.data.path)):
        if not path.startswith("embedded:"):
            raise ConfigError(
                f"{key} was changed but no recipe was given",
                got=f"{path} on top of the embedded digits, whose learning rate, lengths and image size are not for it",
                remedy=f"pass --config RECIPE; {START_RECIPE} is the one to start from",
            )
