"""Code beside a model's weights never runs by itself, whatever file names it; asked for, it must be known code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.config.schema import ModelConfig
from common.errors import ConfigError, ModelError
from common.models.own_code import find_code
from common.models.processor import eos_token_ids, load_model_config, load_processor
from tests.helpers.planted import plant_module

KIND = "strange_model"


@pytest.fixture
def folder(random_qwen2vl: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_qwen2vl, tmp_path / "model"))


def edit(file: Path, **keys: Any) -> None:
    """Change keys of a JSON file; None takes a key out."""
    found = json.loads(file.read_bytes()) if file.exists() else {}
    file.write_text(json.dumps({key: value for key, value in (found | keys).items() if value is not None}))


# Where code is named, as which class, and what else must be strange before transformers asks for the code.
PLACES: list[tuple[str, str, dict[str, Any]]] = [
    ("config.json", "AutoConfig", {"model_type": KIND}),
    ("config.json", "AutoConfig", {"model_type": None}),
    ("processor_config.json", "AutoProcessor", {"processor_class": "Strange"}),
    ("preprocessor_config.json", "AutoImageProcessor", {"image_processor_type": "Strange"}),
    ("tokenizer_config.json", "AutoTokenizer", {"tokenizer_class": "Strange"}),
    ("tokenizer_config.json", "AutoProcessor", {"processor_class": "Strange"}),
]


@pytest.mark.parametrize(("name", "kind", "strange"), PLACES)
@pytest.mark.parametrize("native", [True, False])
def test_code_is_never_run_unasked(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
    strange: dict[str, Any],
    native: bool,
) -> None:
    """Where transformers has classes of its own they are used, and the code is as if it were not there."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked on the terminal"))
    marker = plant_module(folder / "planted.py", tmp_path / "marker")
    edit(folder / name, auto_map={kind: "planted.Strange"}, **({} if native else strange))
    said = read_fault(ModelConfig(path=str(folder)))
    if native:
        assert said is None
    elif name == "config.json":
        assert said is not None and f"auto_map in {name} names planted.Strange" in said
        assert "model.trust_remote_code=true" in said
    assert not marker.exists()


def read_fault(model: ModelConfig) -> str | None:
    """The error that reading the model ends in, or None."""
    try:
        load_processor(model)
        eos_token_ids(model)
    except ModelError as error:
        return str(error)
    return None


def test_code_runs_where_it_is_asked_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others prove nothing unless it does."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = plant_module(folder / "planted.py", tmp_path / "marker")
    edit(folder / "config.json", auto_map={"AutoConfig": "planted.Strange"}, model_type=KIND)
    with pytest.raises(ModelError):
        load_model_config(ModelConfig(path=str(folder), trust_remote_code=True))
    assert marker.exists()


@pytest.mark.parametrize("revision", [None, "main", "v1", "0" * 39, "G" * 40])
def test_a_hub_model_must_be_at_a_commit(monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    monkeypatch.setattr("common.models.processor.require_hub", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="nothing says which") as caught:
        load_model_config(ModelConfig(path="some/model", revision=revision, trust_remote_code=True))
    assert "40 hex digits" in caught.value.remedy


def test_code_of_another_repository_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["someone/else--module.Slow", None]})
    with pytest.raises(ConfigError, match=r"tokenizer_config.json: someone/else--module\.Slow"):
        load_model_config(ModelConfig(path=str(folder), trust_remote_code=True))


def test_trust_without_code_is_refused(folder: Path) -> None:
    """Law 8: it would have no effect."""
    with pytest.raises(ConfigError, match="no effect"):
        load_model_config(ModelConfig(path=str(folder), trust_remote_code=True))


def test_what_names_code(folder: Path) -> None:
    """A text, a list or a mapping; files that are no JSON name nothing."""
    assert find_code(str(folder), None) == {}
    edit(folder / "config.json", auto_map={"AutoConfig": "a.B", "AutoModel": "c.D"})
    edit(folder / "tokenizer_config.json", auto_map=[None, "e.F"])
    (folder / "processor_config.json").write_text("[" * 100_000)
    assert find_code(str(folder), None) == {"config.json": ["a.B", "c.D"], "tokenizer_config.json": ["e.F"]}
