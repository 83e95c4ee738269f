"""Say what is wrong with a `model.path`, or with a file in its folder, when nothing can be loaded from it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from common.config.foreign_text import parse_json
from common.config.sections import EMBEDDED_MODEL
from common.errors import ModelError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_place(path: str) -> None:
    """Refuse a path that is no folder and cannot be a hub id either. Raises ModelError saying what to write."""
    if fault := _find_fault(path):
        got, remedy = fault
        raise ModelError(f"model.path = {path!r} is no model", got=got, remedy=remedy)


def _find_fault(path: str) -> tuple[str, str] | None:
    """Return what a path is instead, and what to write; None for a hub id."""
    if path != path.strip():
        return "blanks around it", f"write {path.strip()}"
    if "://" in path or path.startswith("file:"):
        url = urlsplit(path)
        if url.scheme == "file":
            return "a URL, and URLs are not read", f"write {url.path}"
        if url.hostname in ("huggingface.co", "www.huggingface.co", "hf.co"):
            return "a URL, and URLs are not read", f"write {'/'.join(url.path.split('/')[1:3])}"
        return "a URL, and URLs are not read", "download the model into a folder, and give the folder"
    if path.startswith("embedded"):
        return "the only embedded model has another name", f"perhaps {EMBEDDED_MODEL} is meant"
    place = Path(path).expanduser()
    if place.is_file():
        return "it is a file", f"give its folder, {place.parent}"
    if not _HUB_ID.fullmatch(path) or path.startswith("."):
        return f"no such folder: {place.absolute()}", "check the path; a hub id is written owner/name"
    return None


def find_bad_file(folder: Path) -> str | None:
    """Return what is wrong with a JSON file of a model folder, or which is missing; None where all can be read."""
    if not (folder / "config.json").is_file():
        return f"no config.json in {folder}"
    for file in sorted(folder.glob("*.json")):
        if fault := _find_text_fault(file):
            return f"{file} {fault}"
    return None


def _find_text_fault(file: Path) -> str | None:
    try:
        data = file.read_bytes()
        if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            return "starts with a byte order mark: save it as UTF-8 without one"
        if not data.strip():
            return "is empty"
        if data.lstrip().startswith(b"<"):
            return "is a web page, not JSON: download the file itself"
        found = parse_json(data)
    except (OSError, ValueError) as error:
        return f"is no JSON: {error}"
    if file.name != "config.json":
        return None
    if not isinstance(found, dict):
        return "holds no mapping of settings"
    return "has no model_type" if "model_type" not in found else _find_dtype_fault(found)


def _find_dtype_fault(config: dict[str, object]) -> str | None:
    import torch

    for name in ("dtype", "torch_dtype"):
        given = config.get(name)
        known = isinstance(given, str) and isinstance(getattr(torch, given.removeprefix("torch."), None), torch.dtype)
        if given is not None and not known and not isinstance(given, dict):
            return f"has {name} {given!r}, which torch does not know: bfloat16, float16 and float32 it does"
    return None
