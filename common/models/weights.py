"""Hold the weights of a model folder against the model itself, before anything is loaded: names, shapes and dtypes.

transformers does the comparing, as when it loads: it knows old names of tensors, tied ones and those that need not be
there. It is given tensors without memory, of the shapes that the files' headers say. 1,161 tensors take 0.3 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.schema import ModelConfig
from common.errors import ModelError
from common.models.hub import find_snapshot, is_offline
from common.models.own_code import explain_unreadable
from common.models.weight_files import TensorHeader, read_tensors

TRAINABLE = ("float64", "float32", "float16", "bfloat16")  # dtypes of files; each becomes `model.dtype`
_SHOWN = 3  # names of tensors in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Where weights and model differ."""

    missing: tuple[str, ...]  # tensors of the model that no file holds; transformers makes them of random numbers
    reshaped: tuple[str, ...]  # "lm_head.weight is (8, 4), not (9, 4)"
    total: int  # tensors of the model

    def __bool__(self) -> bool:
        return bool(self.missing or self.reshaped)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} of {self.total} tensors are not there: {_list(self.missing)}")
        if self.reshaped:
            parts.append(f"{len(self.reshaped)} have another shape: {_list(self.reshaped)}")
        return "; ".join(parts)


def check_weights(model: ModelConfig, config: Any, *, here: bool) -> None:
    """Refuse weights that are not whole, or not those of the model that `config` describes.

    Those of a hub model are looked at where this host has them.

    Args:
        here: the run will load them on this host: offline, what is not in its cache cannot be loaded.

    Raises:
        ModelError: naming the file or the tensors.
    """
    from transformers import AutoModelForImageTextToText

    refuse_quantised(model.path, config)
    folder = find_folder(model.path, model.revision, here=here)
    if folder:
        _require_tensors(folder, AutoModelForImageTextToText, config, model)


def find_folder(path: str, revision: str | None, *, here: bool = True) -> Path | None:
    """Return the folder of a model whose weights can be looked at; None where the hub has some of them still.

    Offline the hub has nothing more for this host, which loads them unless told that it is not `here`.
    """
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else find_snapshot(path, revision, whole=not (here and is_offline()))


def _require_tensors(folder: Path, auto: Any, config: Any, model: ModelConfig) -> None:
    """Refuse a folder whose files do not hold every tensor of the model that `auto` makes of `config`.

    Raises ModelError naming the tensors that are missing, or of another shape or dtype.
    """
    tensors = read_tensors(folder)
    try:
        found = find_differences(auto, config, tensors, model)
    except Exception as error:  # the files are not ours
        raise ModelError(
            f"no model can be made of {folder / 'config.json'} and its weights",
            got=explain_unreadable(error),
            remedy="use the config.json that came with the weights",
        ) from error
    if not found:
        return
    others = sorted({header.dtype for header in tensors.values()} - set(TRAINABLE))
    if found.missing and others:
        raise ModelError(
            f"the weights in {folder} are quantised, or of a dtype that cannot be trained",
            got=f"tensors of {', '.join(others)}",
            remedy="use the model they were made of, in bfloat16, float16 or float32",
        )
    raise ModelError(
        f"the weights in {folder} are not those of its config.json",
        got=str(found),
        remedy="download the model again with all of its files, as they were published together",
    )


def refuse_quantised(path: str, config: Any) -> None:
    """Raise ModelError for a checkpoint that is quantised: only floating point is trained."""
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if settings:
            settings = settings if isinstance(settings, Mapping) else vars(settings)
            raise ModelError(
                f"the model {path} is quantised, and cannot be trained",
                got=f"quantization_config of {settings.get('quant_method', 'an unknown method')} in its config.json",
                remedy="use the model it was made of, in bfloat16, float16 or float32",
            )


def find_differences(auto: Any, config: Any, tensors: Mapping[str, TensorHeader], model: ModelConfig) -> Differences:
    """Load tensors without memory into a model without memory, and return what does not fit.

    Tensors of other dtypes than TRAINABLE count as not there: cast to floating point they would be other numbers.

    Args:
        auto: class of transformers that makes the model of `config`, as AutoModelForImageTextToText.
        model: says whether code that lies beside the weights may be run.
    """
    import torch

    empty = {
        name: torch.empty(header.shape, dtype=getattr(torch, header.dtype), device="meta")
        for name, header in tensors.items()
        if header.dtype in TRAINABLE
    }
    with _silence():
        with torch.device("meta"):
            kind = type(auto.from_config(deepcopy(config), trust_remote_code=model.trust_remote_code))
        loaded, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=model.trust_remote_code,
        )
    whole, reshaped = loaded.state_dict(), sorted(report["mismatched_keys"])
    return Differences(
        missing=tuple(sorted(name for name in report["missing_keys"] if whole[name].is_floating_point())),
        reshaped=tuple(f"{name} is {tuple(given)}, not {tuple(wanted)}" for name, given, wanted in reshaped),
        total=len(whole),
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers from reporting what is reported here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
