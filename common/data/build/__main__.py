"""`python -m common.data.build SOURCE --out FOLDER --shots N`: from labelled pictures to a set to train on."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from common.command import read_path, run_command, say
from common.config.renamed import explain_renamed
from common.config.schema import DataConfig
from common.data.build.collection import Collection
from common.data.build.coop import LAYOUTS, open_layout
from common.data.build.make import TEST_FRACTION, Built, Plan, build
from common.data.build.questions import Policy, chooser, read_confusions
from common.data.build.sources import open_source
from common.data.faults import BadRowError, refuse
from common.data.row import bare_label
from common.data.table import reading_data
from common.errors import ConfigError, DataError
from common.labels.candidates import check_question
from common.labels.lint import lint, settle, unlistable

_EXAMPLES = """\
examples:
  python -m common.data.build photos --shots all --out sets/photos
  python -m common.data.build labels.csv --shots 16 --candidates all --out sets/mine
  python -m common.data.build $DATA --layout dtd --shots 4 --base-new --out sets/dtd
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 refused, with nothing written."""
    words = sys.argv[1:] if argv is None else list(argv)
    with run_command() as command:
        options = _parser().parse_args(words)
        _check_options(options)
        collection, question = _open(options)
        plan = _plan(options, collection, question)
        _check_labels(collection, plan.name)
        built = build(collection, plan, options.out, words)
        command.outlive_output()
        _show(built, collection, options.out)
    return command.exit_code


def _open(options: argparse.Namespace) -> tuple[Collection, str]:
    """Return the pictures of the source, and the question to ask about them."""
    if options.layout:
        collection, question = open_layout(options.layout, options.source)
    else:
        collection, question = open_source(options.source), DataConfig().question
    return collection, question if options.question is None else options.question


def _check_options(options: argparse.Namespace) -> None:
    """Raise DataError for a question that no list can follow, and for a set that would be part of its own source."""
    if options.question is not None:
        check_question(options.question)
        if not options.question.strip():
            raise DataError("--question is empty", got=repr(options.question), remedy="leave it out, or ask something")
    source = options.source / LAYOUTS[options.layout].folder if options.layout else options.source
    with reading_data(source, remedy="check the path, and who may read what lies there"):
        inside = source.is_dir() and Path(os.path.realpath(options.out)).is_relative_to(os.path.realpath(source))
    if inside:
        raise DataError(
            f"--out {options.out} lies inside the source",
            got=f"source {source}",
            remedy="choose a folder beside it: what lies inside would be read as pictures of the source",
        )


def _plan(options: argparse.Namespace, collection: Collection, question: str) -> Plan:
    """Return what to make of the source. Raises ConfigError for options that do not go together."""
    if collection.test and options.test_fraction is not None:
        raise ConfigError(
            "--test-fraction is for a source without a test split",
            got=f"{len(collection.test)} test pictures",
            remedy="leave it out",
        )
    hard = options.candidates == "hard"
    if hard != (options.confusion is not None) or (options.list_length and not hard):
        raise ConfigError(
            "--candidates hard, --confusion and --list-length belong together",
            got=f"--candidates {options.candidates}, --confusion {options.confusion}",
            remedy="give --candidates hard --confusion FILE, or none of them",
        )
    confusions = read_confusions(options.confusion, collection.labels) if hard else None
    return Plan(
        name=options.out.name,
        question=question,
        shots=options.shots,
        seed=options.seed,
        policy=options.candidates,
        choose=chooser(options.candidates, confusions=confusions, length=options.list_length),
        test_fraction=options.test_fraction,
        base_new=options.base_new,
        max_side=options.max_side,
        max_megapixels=options.max_megapixels,
        keep_two_labels=options.keep_two_labels,
    )


def _check_labels(collection: Collection, name: str) -> None:
    """Print the linter's warnings. Raises DataError for labels that no question can list or no answer can give."""
    faults: list[tuple[str, BadRowError]] = []
    for label in collection.labels:
        try:
            bare_label(label)
        except BadRowError as fault:
            faults.append((repr(label), fault))
    refuse(f"the labels of {name}", len(collection.labels), faults)
    labels = collection.labels
    settle(name, [unlistable(labels), *lint(labels, [labels], mode="no_think")], say=say)


def _show(built: Built, collection: Collection, out: Path) -> None:
    """Print what was written, and the commands that train on it."""
    say(f"{built.classes} classes: {', '.join(collection.labels[:5])}{' ...' if built.classes > 5 else ''}")
    for name, file in built.written.items():
        say(f"  {name:<10} {file.rows:>6} rows")
    for warning in built.warnings:
        say(f"warning: {warning}")
    for note in built.notes:
        say(f"note: {note}")
    say(f"written to {out}; next, on a laptop or on a GPU:")
    place = shlex.quote(f"data.path={out}")
    # Of the two recipes the first holds out split `test`, the second a share of `train`.
    laptop, gpu = " data.eval_split=null", ""
    if "test" in built.written:
        laptop, gpu = "", " data.eval_split=test data.eval_fraction=0"
    say(f"  python -m learner.main --config deploy/recipes/laptop.yaml {place}{laptop}")
    say(f"  python -m learner.main --config deploy/recipes/folder.yaml {place}{gpu}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common.data.build",
        description="Make a set in CLS-RL's columns, as parquet with a data card.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "source", type=read_path, help="image folder (class = sub-folder), .csv or .jsonl of path, label, perhaps split"
    )
    add("--layout", choices=sorted(LAYOUTS), help="SOURCE is the root of the data sets as CoOp lays them out")
    add("--out", type=read_path, required=True, help="folder to write, new or empty")
    add("--shots", type=_number(1, none="all"), required=True, help="training pictures of each class, or all")
    add("--seed", type=int, default=1, help="random seed of pictures, lists and order (default 1)")
    add(
        "--candidates",
        type=_policy,
        choices=get_args(Policy),
        default="cls_rl",
        help="classes a question lists: CLS-RL's rule (min(100, 0.4 K), all where that is under 30), all, or those "
        "most often confused with the right one (default cls_rl)",
    )
    add("--confusion", type=read_path, metavar="FILE", help="for hard: an evaluation's JSON or evaluations.jsonl")
    add("--list-length", type=_number(2), metavar="N", help="for hard: how many classes a question lists")
    add("--base-new", action="store_true", help="add base_train, base_test and new_test, by CoOp's rule")
    add(
        "--test-fraction",
        type=_share,
        help=f"share held out for test where the source has no test split (default {TEST_FRACTION:g}; 0: none)",
    )
    add("--keep-two-labels", action="store_true", help="write a picture that stands under two labels, with a warning")
    add("--question", help="question about every picture; the class list follows")
    add(
        "--max-side",
        type=_number(1, none="any"),
        default=1024,
        metavar="PIXELS",
        help="larger pictures are scaled down (default 1024), or any",
    )
    limit = DataConfig().max_image_megapixels
    add("--max-megapixels", type=_megapixels, default=limit, help=f"larger pictures are refused (default {limit:g})")
    return parser


def _policy(text: str) -> str:
    """Return `text` for argparse to check, unless it is the old name of a policy."""
    if renamed := explain_renamed(f"--candidates {text}"):
        raise argparse.ArgumentTypeError(renamed)
    return text


def _number(least: int, *, none: str | None = None) -> Callable[[str], int | None]:
    """Return a type for argparse: whole numbers from `least` on, or the word `none`, which means no number."""

    def number(text: str) -> int | None:
        if text == none:
            return None
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return number


def _megapixels(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number over 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


if __name__ == "__main__":
    sys.exit(main())
