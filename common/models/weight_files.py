"""The weights of a model folder: which files they are in, and what each says it holds. No tensor is read."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from common.config.foreign_text import parse_json
from common.errors import ModelError
from common.models.own_code import explain_unreadable

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_SINGLE, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MISTRAL = "consolidated"  # Mistral's own copy of the weights, beside those that everyone reads
ADAPTER = "adapter_config.json"
LFS_MARK = b"version https://git-lfs"
_LFS_LARGEST = 1024  # bytes of a Git LFS pointer
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_AGAIN = "download the model's folder again, or copy it again from where it is whole"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of one of its tensors."""

    shape: tuple[int, ...]
    dtype: str  # as torch names it, "bfloat16"; what the learner takes none of as safetensors does, "F8_E4M3"


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model of its own.

    Raises ModelError where Git LFS left pointers in place of files, as `git clone` without LFS does. Also for an
    adapter: transformers would load the model that it names.
    """
    found = sorted(path.name for path in _list_files(folder) if is_pointer(path))
    if found:
        raise ModelError(
            f"the model {folder} was cloned without its large files",
            got=f"Git LFS pointers in place of {len(found)} files: {', '.join(found[:5])}",
            remedy="run `git lfs install && git lfs pull` in that folder",
        )
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"the model {folder} is an adapter, not a whole model",
            got=f"{ADAPTER} in it",
            remedy="merge it into its base model and save that; a run does so with checkpoint.export = merged",
        )


def is_pointer(path: Path) -> bool:
    """Say whether a file is the note that Git LFS leaves of a file it did not fetch. Raises nothing."""
    try:
        if path.stat().st_size > _LFS_LARGEST:
            return False
        with path.open("rb") as file:
            return file.read(len(LFS_MARK)) == LFS_MARK
    except OSError:
        return False


def read_tensors(folder: Path) -> dict[str, TensorHeader]:
    """Return what the weights of a model folder hold, by the names in its files, from their headers alone.

    Raises:
        ModelError: as `find_files` does, or a file is cut short or says what cannot be.
    """
    return _read_all(find_files(folder))


def find_files(folder: Path) -> list[Path]:
    """Return the files of a model's weights that transformers and vLLM both read.

    Raises:
        ModelError: there are none or two sets of them, or one is missing.
    """
    names = sorted(path.name for path in _list_files(folder))
    safetensors = [name for name in names if name.endswith(".safetensors") and not name.startswith(MISTRAL)]
    single, index = (SINGLE, INDEX) if safetensors or INDEX in names else (OLD_SINGLE, OLD_INDEX)
    beside = safetensors if single == SINGLE else []
    if index in names:
        listed = _read_index(folder / index)
        if single in names and set(listed.values()) != {single}:
            raise _two_sets(folder, [single, index])
        _require_files(folder / index, sorted(set(listed.values())))
        return [folder / name for name in sorted(set(listed.values()))]
    if single not in names:
        raise ModelError(
            f"the model {folder} has no weights",
            got=f"neither {SINGLE} nor {INDEX}" + (f", but {', '.join(beside[:5])}" if beside else ""),
            remedy=f"{_AGAIN}; weights are read as safetensors",
        )
    if len(beside) > 1:  # vLLM would read them all
        raise _two_sets(folder, beside)
    return [folder / single]


def _list_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, links of the hub's cache among them; no hidden ones. Raises ModelError."""
    try:
        yield from (path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    except OSError as error:
        raise ModelError(
            f"the model {folder} cannot be read", got=explain_unreadable(error), remedy="give a folder you may read"
        ) from error


def _two_sets(folder: Path, names: Sequence[str]) -> ModelError:
    return ModelError(
        f"the model {folder} has two sets of weights, and nothing says which is meant",
        got=", ".join(names[:5]),
        remedy=f"move all but one out of the folder: {SINGLE}, or {INDEX} with the files it names",
    )


def _read_index(file: Path) -> dict[str, str]:
    """Return the file of each tensor by an index. Raises ModelError for anything but an index of this folder."""
    try:
        index = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _unusable(file, explain_unreadable(error)) from error
    mapping = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(mapping, Mapping) or not mapping:
        raise _unusable(file, "it has no weight_map of tensors and their files")
    if not isinstance(index.get("metadata"), Mapping):
        raise _unusable(file, "it has no metadata, without which transformers does not read it")
    for tensor, name in mapping.items():
        if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
            raise _unusable(file, f"{tensor} is said to be in {str(name)[:200]!r}, which is no file of its folder")
    return dict(mapping)


def _require_files(index: Path, names: Sequence[str]) -> None:
    """Raise ModelError for files that an index names and that are not there."""
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"weights are missing from the model {index.parent}",
            got=f"{len(missing)} of the {len(names)} files that {index.name} names: {', '.join(missing[:5])}",
            remedy=_AGAIN,
        )


def _read_all(files: Sequence[Path]) -> dict[str, TensorHeader]:
    """Return the tensors of all files. Raises ModelError for one that cannot be read, or a tensor in two of them."""
    tensors: dict[str, TensorHeader] = {}
    owner: dict[str, Path] = {}
    for file in files:
        for name, header in _read_file(file).items():
            if name in tensors:
                raise _unusable(file, f"it holds {name}, which {owner[name].name} holds too")
            tensors[name], owner[name] = header, file
    return tensors


def _read_file(file: Path) -> dict[str, TensorHeader]:
    """Return what one file of weights holds. Raises ModelError when its own library would not read it."""
    try:
        return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    except Exception as error:  # the file is not ours
        raise _unusable(file, _explain(file) or explain_unreadable(error)) from error


def _read_safetensors(file: Path) -> dict[str, TensorHeader]:
    """Read the header with safetensors itself, which holds it against the length of the file."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        return {
            name: TensorHeader(tuple(part.get_shape()), _TORCH_NAMES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        }


def _read_torch(file: Path) -> dict[str, TensorHeader]:
    """Look through weights in torch's format, which may hold code, without reading tensors."""
    import torch

    found: Any = torch.load(file, map_location="meta", weights_only=True, mmap=is_zipfile(file))
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    if len(tensors) < len(found) or not tensors:
        raise ValueError("it holds other things than tensors by their names")
    return {
        name: TensorHeader(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }


def _explain(file: Path) -> str | None:
    """Say in a user's words what is wrong with a file, where it is one of the usual faults."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            header = opened.read(length) if length <= size else b""
    except (OSError, MemoryError):
        return None
    if size == 0:
        return "the file is empty"
    if is_pointer(file):
        return "a Git LFS pointer in place of the weights: run `git lfs pull` in that folder"
    if file.suffix != ".safetensors":
        return None
    if length > size - 8:
        return f"a header of {length} bytes in a file of {size}: it was cut short, or is no safetensors file"
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in parse_json(header).items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    whole = 8 + length + max(ends, default=0)
    return f"it was cut short: {size} of {whole} bytes are there" if size < whole else None


def _unusable(file: Path, got: str) -> ModelError:
    return ModelError(
        f"the weights {file} cannot be used", got=got, remedy=f"{_AGAIN}; safetensors cannot hold code, others may"
    )
