"""Python code that lies beside a model's weights. It is never run, unless `model.trust_remote_code` asks for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.config.schema import ModelConfig
from common.errors import ConfigError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAMING_FILES = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)


def check_trust(model: ModelConfig) -> None:
    """Refuse `model.trust_remote_code` unless it is certain which code would run.

    A hub model needs a commit as its revision, and no code of a second repository. In a folder it is what lies there.

    Raises ConfigError, also for a model that has no code to trust.
    """
    if not model.trust_remote_code:
        return
    if not Path(model.path).expanduser().is_dir() and not _COMMIT.fullmatch(model.revision or ""):
        raise ConfigError(
            "model.trust_remote_code runs code of the hub, and nothing says which",
            got=f"model.path = {model.path} with model.revision = {model.revision}",
            remedy="read the code at one commit, and set model.revision to that commit's 40 hex digits",
        )
    found = find_code(model.path, model.revision)
    if not found:
        raise ConfigError(
            "model.trust_remote_code = true has no effect: no file of the model names code of its own",
            got=f"model.path = {model.path}",
            remedy="leave it out",
        )
    if elsewhere := [f"{name}: {one}" for name, references in found.items() for one in references if "--" in one]:
        raise ConfigError(
            "the model's code lies in another repository, which model.revision does not pin",
            got=", ".join(elsewhere),
            remedy="copy that code into the model's folder, and name it there",
        )


def find_code(path: str, revision: str | None) -> dict[str, list[str]]:
    """Return what the files of a model name as code: {"config.json": ["modeling_x.Model"]}; empty where there is none.

    Of a hub model the files are read as transformers does, from the cache or the hub.
    """
    references = {name: _list_references(_read(path, revision, name).get("auto_map")) for name in _NAMING_FILES}
    return {name: found for name, found in references.items() if found}


def explain_failure(path: str, revision: str | None, error: Exception) -> str:
    """Say why a model could not be loaded: by the code it would need, if it has some, else by the error."""
    if found := find_code(path, revision):
        names = "; ".join(f"auto_map in {name} names {', '.join(references)}" for name, references in found.items())
        return f"it needs code of its own, which is not run: {names}"
    return explain_unreadable(error)


def explain_unreadable(error: Exception) -> str:
    """Say what is wrong with a foreign file. torch says it amid advice on how to load the file all the same."""
    text = " ".join(str(error).split())
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"it names {named[1]}, and may hold tensors and plain values only"
    return f"{type(error).__name__}: {text.rpartition('WeightsUnpickler error: ')[2][:300]}"


def _read(path: str, revision: str | None, name: str) -> Mapping[str, Any]:
    """Return the mapping in a file of the model; an empty one where there is none."""
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(
            path,
            name,
            revision=revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        found = parse_json(Path(file).read_bytes()) if file else {}
    except (OSError, ValueError):  # whoever needs the file says so
        return {}
    return found if isinstance(found, dict) else {}


def _list_references(named: object) -> list[str]:
    """List the references in an `auto_map`: a text, or a list or mapping of such, in which null stands for none."""
    if isinstance(named, str):
        return [named]
    inner = named.values() if isinstance(named, dict) else named if isinstance(named, list) else ()
    return [reference for one in inner for reference in _list_references(one)]
