"""Weights held against their model before anything is loaded. The judge: what transformers loads of the same folder."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from common.config.schema import ModelConfig
from common.errors import ModelError
from common.models.processor import load_model_config
from common.models.weight_files import INDEX, OLD_SINGLE, SINGLE, check_folder, read_tensors
from common.models.weights import check_weights
from tests.helpers.hub import SHA
from tests.helpers.models import Architecture, build_random_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 4417234\n"
NORM = "model.layers.0.input_layernorm.weight"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL of 0.15 M parameters, its head tied."""
    return build_random_model(tmp_path_factory.mktemp("models") / "qwen2_vl", seed=1)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "copy")


def check(folder: Path, *, here: bool = True) -> None:
    named = ModelConfig(path=str(folder))
    check_folder(folder)
    check_weights(named, load_model_config(named), here=here)


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The judge: what transformers loads, and what it says of it."""
    from transformers import AutoModelForImageTextToText

    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
    )
    return loaded[0].state_dict(), loaded[1]


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def each(*changes: Change) -> Change:
    """Return what makes several changes, one after the other."""

    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def remove(folder: Path) -> None:
    (folder / SINGLE).unlink()


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save(tensors, folder / SINGLE)


def edit_json(file: Path, change: Callable[[Any], object]) -> None:
    found = json.loads(file.read_bytes())
    change(found)
    file.write_text(json.dumps(found))


def shard(folder: Path, parts: int = 3) -> list[Path]:
    """Split the weights as `save_pretrained` does, with their index."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    files = [folder / f"model-{part + 1:05}-of-{parts:05}.safetensors" for part in range(parts)]
    names = sorted(tensors)
    for part, file in enumerate(files):
        save({name: tensors[name] for name in names[part::parts]}, file)
    placed = {name: files[at % parts].name for at, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return files


# -- what is right -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_family_passes(tmp_path: Path, architecture: Architecture) -> None:
    check(build_random_model(tmp_path / "model", seed=1, architecture=architecture))


def new_names(folder: Path) -> None:
    """As transformers 5 has them in memory; it saves, and Qwen published, those of before."""
    renamed = {"model.": "model.language_model.", "visual.": "model.visual."}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            prefix = next(prefix for prefix in renamed if name.startswith(prefix))
            tensors[name.replace(prefix, renamed[prefix], 1)] = tensors.pop(name)

    edit(folder, rename)


def with_head(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].clone()}))


EMBEDDING = "model.embed_tokens.weight"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
RIGHT: dict[str, Change] = {
    "as saved": lambda folder: None,
    "names of transformers 5": new_names,
    "shards and their index": shard,
    "one shard": lambda folder: shard(folder, 1),
    "shards, and old ones beside": each(shard, lambda folder: save({"x": torch.ones(1)}, folder / "old.safetensors")),
    "the tied head too": with_head,
    "frequencies that are computed now": lambda folder: edit(folder, lambda t: t.update({INV_FREQ: torch.ones(16)})),
    "a tower nobody asked for": lambda folder: edit(folder, lambda t: t.update({"audio.weight": torch.ones(2)})),
    "counters in integers": lambda folder: edit(folder, lambda t: t.update({"step": torch.ones(1, dtype=torch.int64)})),
    "float16": lambda folder: edit(folder, lambda t: t.update({name: t[name].half() for name in list(t)})),
    "bfloat16 and float32": lambda folder: edit(folder, lambda t: t.update({NORM: t[NORM].bfloat16()})),
    "torch's format beside": lambda folder: torch.save({"x": torch.ones(1)}, folder / OLD_SINGLE),
    "torch's format alone": each(lambda folder: torch.save(load_file(folder / SINGLE), folder / OLD_SINGLE), remove),
    "Mistral's copy beside": lambda folder: save({"x": torch.ones(1)}, folder / "consolidated.safetensors"),
    "what macOS leaves": lambda folder: (folder / "._model.safetensors").write_bytes(b"\0\5\26\7"),
    "an index of the one file": lambda folder: (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / SINGLE), SINGLE)})
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_sound_folders_pass(folder: Path, name: str) -> None:
    RIGHT[name](folder)
    check(folder)
    state, report = load(folder)
    assert state and not report["missing_keys"] and not report["mismatched_keys"]


# -- what is wrong -----------------------------------------------------------------------------------------------------


def cut(file: Path, keep: Callable[[int], int]) -> None:
    file.write_bytes(file.read_bytes()[: keep(file.stat().st_size)])


def drop_a_fifth(tensors: dict[str, torch.Tensor]) -> None:
    for name in sorted(tensors)[::5]:
        del tensors[name]


def shards_with(change: Callable[[list[Path]], object]) -> Change:
    return lambda folder: change(shard(folder))


def index_with(change: Callable[[Any], object]) -> Change:
    return each(shard, lambda folder: edit_json(folder / INDEX, change))


def drop_from_shard(files: list[Path]) -> None:
    tensors = load_file(files[1])
    tensors.pop(min(tensors))
    save(tensors, files[1])


def to_integers(dtype: torch.dtype) -> Change:
    return lambda folder: edit(folder, lambda t: t.update({NORM: t[NORM].to(dtype)}))


def quantise(config: Any) -> None:
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}


def untie(config: Any) -> None:
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False


WRONG: dict[str, tuple[Change, str]] = {
    "a pointer of Git LFS": (
        lambda f: (f / SINGLE).write_bytes(POINTER),
        "cloned without its large files.*git lfs pull",
    ),
    "a pointer in place of the tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(POINTER), "tokenizer.json"),
    "an empty file": (lambda f: (f / SINGLE).write_bytes(b""), "the file is empty"),
    "five bytes": (lambda f: cut(f / SINGLE, lambda size: 5), "cannot be used"),
    "cut in the header": (lambda f: cut(f / SINGLE, lambda size: 100), "cut short, or is no safetensors file"),
    "cut in the tensors": (lambda f: cut(f / SINGLE, lambda size: size // 2), r"cut short: \d+ of \d+ bytes"),
    "one byte less": (lambda f: cut(f / SINGLE, lambda size: size - 1), "cut short"),
    "a web page": (lambda f: (f / SINGLE).write_bytes(b"<!DOCTYPE html><html>" * 9), "is no safetensors file"),
    "a header of nonsense": (
        lambda f: (f / SINGLE).write_bytes(struct.pack("<Q", 9) + b"not JSON!"),
        "cannot be used",
    ),
    "a header without end": (lambda f: (f / SINGLE).write_bytes(b"\xff" * 99), "is no safetensors file"),
    "no weights": (lambda f: (f / SINGLE).unlink(), "has no weights"),
    "weights of a variant": (lambda f: (f / SINGLE).rename(f / "model.fp16.safetensors"), "but model.fp16.safetensors"),
    "a link to nowhere": (
        each(remove, lambda f: (f / SINGLE).symlink_to(f / "blob")),
        "cannot be used",
    ),
    "a folder of that name": (each(remove, lambda f: (f / SINGLE).mkdir()), "has no weights"),
    "a missing shard": (shards_with(lambda files: files[1].unlink()), "1 of the 3 files that .* names: model-00002"),
    "shards without an index": (each(shard, lambda f: (f / INDEX).unlink()), "has no weights.*but model-00001"),
    "a shard without its tensor": (shards_with(drop_from_shard), "1 of 58 tensors are not there"),
    "a shard twice": (shards_with(lambda files: shutil.copy(files[0], files[1])), "holds too"),
    "a pointer in place of a shard": (shards_with(lambda files: files[2].write_bytes(POINTER)), "model-00003"),
    "an index that is no JSON": (lambda f: (shard(f), (f / INDEX).write_text("{")), "cannot be used"),
    "an index that is a list": (lambda f: (shard(f), (f / INDEX).write_text("[]")), "no weight_map"),
    "an index without a map": (index_with(lambda i: i.pop("weight_map")), "no weight_map"),
    "an index without metadata": (index_with(lambda i: i.pop("metadata")), "no metadata"),
    "a map that is a list": (index_with(lambda i: i.update(weight_map=["a"])), "no weight_map"),
    "a map to a number": (index_with(lambda i: i["weight_map"].update({NORM: 3})), "is no file of its folder"),
    "a map to outside": (
        index_with(lambda i: i["weight_map"].update({NORM: "../x.safetensors"})),
        "'../x.safetensors'",
    ),
    "a map to an absolute path": (index_with(lambda i: i["weight_map"].update({NORM: "/etc/passwd"})), "/etc/passwd"),
    "two sets": (
        lambda f: (shutil.copy(f / SINGLE, f / "kept"), shard(f), (f / "kept").rename(f / SINGLE)),
        "two sets of weights",
    ),
    "a second file without an index": (lambda f: shutil.copy(f / SINGLE, f / "old.safetensors"), "two sets of weights"),
    "a fifth of the tensors": (lambda f: edit(f, drop_a_fifth), r"\d+ of 58 tensors are not there"),
    "no embedding": (lambda f: edit(f, lambda t: t.pop(EMBEDDING)), "embed_tokens.weight"),
    "another shape": (lambda f: edit(f, lambda t: t.update({NORM: torch.ones(7)})), r"is \(7,\), not \(64,\)"),
    "another config.json": (
        lambda f: edit_json(f / "config.json", lambda c: c["text_config"].update(intermediate_size=512)),
        "another shape",
    ),
    "a config.json of more layers": (
        lambda f: edit_json(
            f / "config.json",
            lambda c: c["text_config"].update(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        ),
        "12 of 70 tensors are not there",
    ),
    "a head that is not tied": (
        lambda f: edit_json(f / "config.json", untie),
        "lm_head.weight",
    ),
    "heads that do not divide": (
        lambda f: edit_json(f / "config.json", lambda c: c["vision_config"].update(num_heads=0)),
        "no model can be made of",
    ),
    "float8": (to_integers(torch.float8_e4m3fn), "dtype that cannot be trained\n  got:    tensors of F8_E4M3"),
    "int8": (to_integers(torch.int8), "dtype that cannot be trained\n  got:    tensors of I8"),
    "int32": (to_integers(torch.int32), "dtype that cannot be trained\n  got:    tensors of I32"),
    "quantised": (lambda f: edit_json(f / "config.json", quantise), "quantised.*awq"),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter"),
    "torch's format, a tensor less": (
        each(
            lambda f: torch.save({k: v for k, v in load_file(f / SINGLE).items() if k != NORM}, f / OLD_SINGLE), remove
        ),
        "1 of 58 tensors are not there",
    ),
    "torch's format, other things": (
        each(lambda f: torch.save({"model": {}, "step": 3}, f / OLD_SINGLE), remove),
        "other things than tensors",
    ),
    "torch's format, a pointer": (
        each(lambda f: (f / OLD_SINGLE).write_bytes(POINTER), remove),
        "cloned without",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_unsound_folders_are_refused(folder: Path, name: str) -> None:
    """In one error, which says what is wrong in a user's words."""
    change, said = WRONG[name]
    change(folder)
    with pytest.raises(ModelError, match=f"(?s){said}") as caught:
        check(folder)
    assert len(str(caught.value)) < 900 and caught.value.remedy


def test_a_file_nobody_may_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be used\n.*Permission denied"):
        read_tensors(folder)


# -- models of the hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a/b in the hub's cache: links to blobs, as downloads leave it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub/models--a--b"
    snapshot, blobs = home / "snapshots" / SHA, home / "blobs"
    for folder in (snapshot, blobs, home / "refs"):
        folder.mkdir(parents=True)
    (home / "refs/main").write_text(SHA)
    for file in model.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(blobs / file.name)
    return snapshot


def check_cached(*, here: bool = True) -> None:
    named = ModelConfig(path="a/b")
    check_weights(named, load_model_config(named), here=here)


def test_the_snapshot_of_a_hub_model_is_looked_at(cached: Path) -> None:
    check_cached()
    cut(cached.parents[1] / "blobs" / SINGLE, lambda size: size - 1)
    with pytest.raises(ModelError, match="cut short"):
        check_cached()


def test_weights_that_are_not_in_the_cache(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline nobody can load them here; the hub may have them, and so may the hosts of another cluster."""
    (cached / SINGLE).unlink()
    with pytest.raises(ModelError, match="has no weights"):
        check_cached()
    check_cached(here=False)
    config = load_model_config(ModelConfig(path="a/b"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    check_weights(ModelConfig(path="a/b"), config, here=True)


# -- any mutation ------------------------------------------------------------------------------------------------------


@cache
def sound(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder)[0]


def is_as_before(folder: Path, original: Path) -> bool:
    """Whether transformers loads what it loaded before the mutation, and makes nothing anew."""
    try:
        state, report = load(folder)
    except Exception:  # noqa: BLE001  # the judge may raise anything
        return False
    if report["missing_keys"] or report["mismatched_keys"]:
        return False
    return all(torch.equal(state[name], tensor) for name, tensor in sound(original).items())


def mutate_header(data: st.DataObject, raw: bytes) -> bytes:
    """Return the file with one thing changed in what stands before the tensors."""
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    names = sorted(name for name in header if name != "__metadata__")
    name = data.draw(st.sampled_from(names))
    how = data.draw(
        st.sampled_from(["byte", "cut", "drop", "rename", "shape", "dtype", "offset", "length", "metadata", "extra"])
    )
    if how == "byte":
        at = data.draw(st.integers(0, 7 + length))
        return raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    if how == "cut":
        return raw[: data.draw(st.integers(0, len(raw)))]
    if how == "length":
        return struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1))) + raw[8:]
    entry, rest = header[name], raw[8 + length :]
    if how == "drop":
        del header[name]
    elif how == "rename":
        header[data.draw(st.sampled_from([f"{name}x", name.replace("model.", "", 1), "x"]))] = header.pop(name)
    elif how == "shape":
        entry["shape"] = data.draw(st.sampled_from([entry["shape"][::-1], [*entry["shape"], 1], [1], []]))
    elif how == "dtype":
        entry["dtype"] = data.draw(st.sampled_from(["I32", "U32", "F32", "F16", "F64", "F8_E4M3", "X"]))
    elif how == "offset":
        entry["data_offsets"][data.draw(st.integers(0, 1))] += data.draw(st.sampled_from([-4, 4, 10**9]))
    elif how == "metadata":
        header["__metadata__"] = {"format": data.draw(st.sampled_from(["pt", "np"])), "note": "x"}
    else:
        header["extra.weight"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(rest), len(rest) + 4]}
        rest += b"\0\0\0\0"
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + rest


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_header_passes_only_if_the_same_weights_are_loaded(model: Path, folder: Path, data: st.DataObject) -> None:
    raw = (model / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(mutate_header(data, raw))
    assert passes(folder) == is_as_before(folder, model)


def passes(folder: Path) -> bool:
    try:
        check(folder)
    except ModelError:
        return False
    return True


def mutate_index(data: st.DataObject, folder: Path, files: list[Path]) -> None:
    """Change an index, or its files, in one way."""
    names = sorted(json.loads((folder / INDEX).read_bytes())["weight_map"])
    name, file, other = data.draw(st.sampled_from(names)), *data.draw(st.permutations(files))[:2]
    how = data.draw(st.sampled_from(["move", "leave out", "add", "file gone", "file renamed", "files swapped", "byte"]))
    if how == "move":
        edit_json(folder / INDEX, lambda index: index["weight_map"].update({name: other.name}))
    elif how == "leave out":
        edit_json(folder / INDEX, lambda index: index["weight_map"].pop(name))
    elif how == "add":
        edit_json(folder / INDEX, lambda index: index["weight_map"].update({"extra": file.name}))
    elif how == "file gone":
        file.unlink()
    elif how == "file renamed":
        file.rename(folder / "renamed.safetensors")
    elif how == "files swapped":
        file.rename(folder / "aside")
        other.rename(file)
        (folder / "aside").rename(other)
    else:
        raw = bytearray((folder / INDEX).read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 127))
        (folder / INDEX).write_bytes(bytes(raw))


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_index_passes_only_if_the_same_weights_are_loaded(model: Path, folder: Path, data: st.DataObject) -> None:
    shutil.rmtree(folder)
    shutil.copytree(model, folder)
    mutate_index(data, folder, shard(folder))
    assert passes(folder) == is_as_before(folder, model)
