"""The label linter as a command: `python -m common.data.lint PATH[@SPLIT] ... [--model MODEL]`.

It reads whole data sets as a run does, so what stops a run stops it too: rows, images, labels, and prompts that are too
long for a model. What `common.labels.lint` only doubts is shown as warnings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import get_args

from common.command import run_command, say
from common.config.schema import DataConfig, ModelConfig
from common.config.settings import Setting, resolve
from common.data.content.columns import doubt_columns
from common.data.content.survey import divide_by_name, survey
from common.data.places import find_splits, split_place
from common.data.sources import ExampleSource, load, say_notes
from common.data.table import UNNAMED
from common.errors import ConfigError
from common.labels.answers import Mode
from common.labels.candidates import candidates
from common.labels.lint import Finding, lint, settle


def lint_sources(sources: Iterable[ExampleSource], *, mode: Mode, drawn_from: Sequence[str] = ()) -> list[Finding]:
    """Lint the labels of these splits, the lists of their questions, and the labels that lists are drawn from."""
    sources = list(sources)
    problems = {outline.problem: None for source in sources for outline in source.outlines}
    lists = [offered for offered in map(candidates, problems) if offered]
    return lint({label for source in sources for label in source.labels}, [*lists, drawn_from], mode=mode)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 usable, perhaps with warnings; 2 refused."""
    with run_command() as command:
        options = _parser().parse_args(argv)
        data = _read_options(options)
        read = {place: _read_place(place, data) for place in options.places}
        parts = [part for place, (sources, _) in read.items() for part in divide_by_name(sources, place)]
        survey(parts, DataConfig(mode=options.mode), say=say)
        for place, (sources, data) in read.items():
            settle(place, lint_sources(sources, mode=data.mode), say=say)
            if options.model is not None:
                _measure(sources, data, options.model)
    return command.exit_code


def _read_options(options: argparse.Namespace) -> DataConfig:
    """Return the options as the section of a configuration. Raises ConfigError for values that it does not take."""
    names = ("mode", "question", "image_size", "max_prompt_tokens")
    settings = [
        Setting(key=f"data.{name}", value=getattr(options, name), origin=f"--{name.replace('_', '-')}")
        for name in names
    ]
    return resolve(settings).data.model_copy(update={"cache_mb": 0})  # every picture is looked at once


def _read_place(place: str, data: DataConfig) -> tuple[list[ExampleSource], DataConfig]:
    """Read one `PATH[@SPLIT]`, and print how much there is."""
    path, split = split_place(place)
    data = data.model_copy(update={"path": path})
    names = [split] if split else [name if name != UNNAMED else data.split for name in find_splits(path, data.question)]
    sources = [load(data, split=name) for name in names]
    say_notes(sources, say)
    for source in sources:
        for line in doubt_columns(source.name, source.columns):
            say(line)
        say(f"{source.name}: {len(source)} rows, {len(source.labels)} labels")
    return sources, data


def _measure(sources: Sequence[ExampleSource], data: DataConfig, path: str) -> None:
    """Print the tokens of labels. Raises DataError naming the rows whose prompt is too long for the limit."""
    from common.models.families import family_of
    from common.models.processor import load_model_config, load_processor
    from common.models.prompts import PromptEncoder

    if not path:
        raise ConfigError("--model is empty", got=repr(path), remedy="give a folder or a hub id")
    if path.startswith("embedded:"):
        raise ConfigError(f"{path} is made for each data set anew", got=path, remedy="give a folder or a hub id")
    model = ModelConfig(path=path)
    encoder = PromptEncoder(load_processor(model), data, family=family_of(load_model_config(model)))
    for source in sources:
        encoder.check(source)
    sizes = sorted((encoder.count(label), label) for label in {label for source in sources for label in source.labels})
    (least, shortest), (most, longest) = sizes[0], sizes[-1]
    say(f"tokens of a label: {least} ({shortest!r}) to {most} ({longest!r}); every prompt is within the limit")


def _parser() -> argparse.ArgumentParser:
    defaults = DataConfig()
    parser = argparse.ArgumentParser(prog="python -m common.data.lint", description="Check labels, rows and images.")
    parser.add_argument("places", nargs="+", metavar="PATH[@SPLIT]", help="a data set, all its splits or one")
    parser.add_argument(
        "--mode", choices=get_args(Mode), default=defaults.mode, help="form of the answers, as data.mode takes it"
    )
    parser.add_argument("--question", default=defaults.question, help="question about every picture of an image folder")
    parser.add_argument("--model", help="folder or hub id: counts the tokens of labels and prompts")
    parser.add_argument(
        "--image-size", type=int, default=defaults.image_size, help="pixels a side that images are resized to"
    )
    parser.add_argument(
        "--max-prompt-tokens",
        type=int,
        default=defaults.max_prompt_tokens,
        help="with --model: a longer prompt is refused",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
