"""The command line of `learner.evaluate`: models, each with its configuration, and sets."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command import read_path, say
from common.config import cli
from common.config.renamed import explain_renamed
from common.config.schema import Config, LoraConfig
from common.data.places import split_place
from common.errors import ConfigError, ModelError, raise_as
from common.storage.bucket import is_url
from learner.storage.files import replace_text
from learner.storage.run_bucket import bring_export
from learner.storage.run_folder import RUNS

USAGE = """\
python -m learner.evaluate --model M [--data [NAME=]PATH[@SPLIT]] [--config RECIPE] [KEY=VALUE ...]

  --model M        the model: a run folder, also s3://BUCKET/RUN (its export, under the run's
                   own configuration unless a recipe is given), a Hugging Face folder or hub
                   id, embedded:tiny
  --data PLACE     the set: a place as data.path takes it, and its split; @SPLIT alone is a
                   split of data.path. By default what the configuration evaluates.
                   With sets named base and new (base_test and new_test are) H is reported
  several --model and several --data are evaluated each with each
  --samples N      also sample N answers to each row, for pass@k and majority@k at the k of
                   evaluation.pass_at_k
  --closed-set     refuse a set without closed-set accuracy; --no-closed-set leaves it out
  --out FOLDER     where to write; by default runs/<date>-evaluate
  --cls-rl-format FILE
                   also write the JSON of CLS-RL's evaluation, for one model and one set
  --dry-run        check everything that needs no cluster, and start nothing
  --config RECIPE, KEY=VALUE
                   as python -m learner.main takes them
"""
_VALUED = ("--model", "--data", "--out", "--cls-rl-format", "--samples")
_OF_BASE_TO_NEW = {"base_test": "base", "new_test": "new"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a command line asks for."""

    models: Mapping[str, Config]  # by the name given to --model
    held_out: bool  # no --data: the configuration's held-out rows are evaluated, and its sets
    out: Path | None
    cls_rl_file: Path | None
    dry_run: bool  # check everything, start nothing


def parse(argv: Sequence[str]) -> Request:
    """Read the arguments (without the program's name). `--help` prints and exits.

    Raises:
        ConfigError: for what `common.config.cli.parse` refuses, no model, or more than one file of CLS-RL holds.
        ModelError: a run has no export that can be evaluated.
    """
    own, rest = _split_words([word for word in argv if word != "--dry-run"])
    sets = _name_sets(own["--data"])
    if not own["--model"]:
        raise ConfigError("no model is named", got=" ".join(argv) or "no arguments", remedy="pass --model M")
    if own["--cls-rl-format"] and len(own["--model"]) * len(sets) != 1:
        raise ConfigError(
            "--cls-rl-format holds the answers of one model to one set",
            got=f"{len(own['--model'])} models and {len(sets)} sets",
            remedy="pass one --model and one --data",
        )
    rest += [f"evaluation.samples={number}" for number in own["--samples"]]
    if own["--out"] and is_url(own["--out"][-1]):
        raise ConfigError("--out takes a folder", got=own["--out"][-1], remedy="write to a folder, and copy it")
    out, cls_rl_file = (read_path(own[name][-1], name) if own[name] else None for name in ("--out", "--cls-rl-format"))
    if cls_rl_file:
        _check_writable(cls_rl_file.absolute())
    models = {name: _make_config(name, rest, sets) for name in own["--model"]}
    return Request(models=models, held_out=not sets, out=out, cls_rl_file=cls_rl_file, dry_run="--dry-run" in argv)


def _check_writable(file: Path) -> None:
    """Raise ConfigError for a file that could not be written once everything is evaluated."""
    with raise_as(
        ConfigError, f"--cls-rl-format {file} cannot be written", remedy="name a file in a folder that is there"
    ):
        if file.exists() and not file.is_file():
            raise OSError(errno.EINVAL, "no plain file")
        trial = file.with_name(f"{file.name}.try")
        replace_text(trial, "")
        trial.unlink()


def _split_words(argv: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Split the arguments into our own, {"--model": ["M"], ...}, and those of `common.config.cli`."""
    words, own, rest = list(argv), {flag: list[str]() for flag in _VALUED}, list[str]()
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            say(USAGE.removesuffix("\n"))
            raise SystemExit(0)
        if flag.startswith("--") and (renamed := explain_renamed(flag)):
            raise ConfigError(renamed, got=word, remedy="write the new name")
        if word in ("--closed-set", "--no-closed-set"):
            rest.append(f"evaluation.closed_set={'false' if word.startswith('--no') else 'true'}")
        elif flag in own:
            if not equals and (not words or words[0].startswith("--")):
                raise ConfigError(f"{flag} has no value", got=word, remedy=f"write {flag} VALUE")
            own[flag].append(value if equals else words.pop(0))
            if not own[flag][-1].strip():
                raise ConfigError(
                    f"{flag} is empty", got=repr(own[flag][-1]), remedy=f"write {flag} VALUE, or leave it out"
                )
        elif word in ("--print-config", "--plan"):
            raise ConfigError(
                f"an evaluation takes no {word}",
                got=word,
                remedy="leave it out; --dry-run checks everything and starts nothing",
            )
        else:
            rest.append(word)
    return own, rest


def _make_config(name: str, words: Sequence[str], sets: Mapping[str, str]) -> Config:
    """Return the configuration of one model: its run's unless a recipe is given, as it is evaluated."""
    path, recipe = _locate_model(name)
    recipes = [] if recipe is None or any(word.startswith("--config") for word in words) else ["--config", str(recipe)]
    config = cli.parse([*recipes, *words, f"model.path={path}"]).config
    of_run = {"revision": None} if recipe else {}  # that of what it was trained from
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=of_run),
            "lora": LoraConfig(),  # adapters are merged into what is evaluated
            "learner": config.learner.model_copy(update={"beta": 0.0}),  # no reference
            "evaluation": config.evaluation.model_copy(update={"sets": sets or config.evaluation.sets}),
        }
    )


def _locate_model(name: str) -> tuple[str, Path | None]:
    """Return where the model is, and the recipe of the run that made it, if a run did.

    `runs/latest` is ("runs/latest/export", runs/latest/config.yaml), a hub id is (the id, None).

    Raises ModelError for a run that has exported no whole model, and for a checkpoint.
    """
    with raise_as(ModelError, f"--model {name} cannot be read", remedy="give a run folder, a model folder or a hub id"):
        place = Path(name).expanduser() if not is_url(name) else bring_export(name)
        return _find_export(name, place)


def _find_export(name: str, place: Path) -> tuple[str, Path | None]:
    """Return what `_locate_model` does, of a model at `place`."""
    if place.is_file():
        raise ModelError(f"--model {name} is a file", got=place, remedy="give a run folder, a model folder or a hub id")
    if place.parent.name == "checkpoints":
        raise ModelError(
            f"--model {name} is a checkpoint, which only its run can read",
            got=", ".join(sorted(entry.name for entry in place.iterdir())[:5]) if place.is_dir() else "no such folder",
            remedy="give the run folder: its export is evaluated",
        )
    export = place if place.name == "export" else place / "export"
    recipe = export.parent / "config.yaml"
    if not recipe.is_file() and not is_url(name):
        if not place.exists() and _means_folder(name):
            raise ModelError(
                f"there is no {name}",
                got=f"a link to {place.readlink()}, which is not there" if place.is_symlink() else "no such folder",
                remedy="give a run folder, a model folder or a hub id; runs/latest is there once a run began",
            )
        return name, None
    if not (export / "config.json").is_file():
        held = "an adapter alone" if (export / "adapter_config.json").is_file() else "no exported model"
        raise ModelError(
            f"the run {name} has no model to evaluate",
            got=held,
            remedy="let the run end with checkpoint.export = true, which also merges adapters",
        )
    return str(export), recipe


def _means_folder(name: str) -> bool:
    """Say whether what is not there can only be meant for a folder: one below `runs`, or beside others."""
    parent = Path(name).parent
    return name.startswith(("/", ".", "~")) or parent.parts[:1] == RUNS.parts or (parent != Path() and parent.is_dir())


def _name_sets(words: Sequence[str]) -> dict[str, str]:
    """Return {name: place} of every `[NAME=]PATH[@SPLIT]`. Raises ConfigError when two have one name."""
    sets: dict[str, str] = {}
    for word in words:
        given = re.fullmatch(r"([\w.:-]+)=(.+)", word)
        name, place = given.groups() if given else (_derive_name(word), word)
        if name in sets:
            raise ConfigError(
                "two sets have one name", got=f"{name}: {sets[name]} and {place}", remedy=f"write --data NAME={place}"
            )
        sets[name] = place
    return sets


def _derive_name(place: str) -> str:
    """Name a set by its half of base-to-new, else by the last part of its path, else by its split."""
    path, split = split_place(place)
    return _OF_BASE_TO_NEW.get(split or "") or Path(path.partition(":")[2] or path).stem or split or place
