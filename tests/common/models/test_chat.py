"""A chat template may be anybody's program: it is rendered as transformers does, or ended in seconds by its name."""

from __future__ import annotations

import gc
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.config.schema import DataConfig, ModelConfig
from common.errors import ModelError
from common.models import chat as module
from common.models.processor import load_processor
from common.models.prompts import PromptEncoder
from common.types import Example

pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "one, ✓ or \udcff?"}]}]
LOOP = "{% for a in range(100000) %}"
END = "{% endfor %}"
ENDLESS = {
    "nested loops": LOOP * 4 + END * 4,
    "nested loops that print": (LOOP + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa") * 3 + END * 3,
    "macros": "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
    "one operation": "{% set n = messages|length + 9 %}{{ n ** (n ** 9) }}",
    "a constant": "{{ 10 ** (10 ** 9) }}",
}
TOO_MUCH = {
    "a long text": "{{ 'a' * 100000000 }}",
    "a text without end": "{% set n = messages|length %}{{ 'a' * n * 10 ** 12 }}",
    "doubled": "{% set n = namespace(t='aaaa') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "a wide column": "{{ '%1000000000d' % messages|length }}",
    "too long a range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}
WRONG = {
    "raises": "{{ raise_exception('no pictures') }}",
    "syntax": "{% for %}",
    "out of the sandbox": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "undefined": "{{ nothing.at.all }}",
}


@pytest.fixture
def folder(random_qwen2vl: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_qwen2vl, tmp_path / "model"))


def write(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder / "chat_template.jinja"


def render(folder: Path) -> str:
    processor = load_processor(ModelConfig(path=str(folder)))
    return str(processor.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_template_without_end_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(module, "RENDER_S", 1.0)
    before, file, start = children(), write(folder, template), time.monotonic()
    with pytest.raises(ModelError, match=r"cannot be rendered\n  got:    it was not done after 1 s") as caught:
        render(folder)
    assert str(file) in caught.value.what
    assert time.monotonic() - start < 20
    assert children() <= before


@pytest.mark.parametrize("template", [*TOO_MUCH.values(), *WRONG.values()], ids=[*TOO_MUCH, *WRONG])
def test_a_template_that_takes_too_much_or_fails_is_named(folder: Path, template: str) -> None:
    file = write(folder, template)
    with pytest.raises(ModelError, match="cannot be rendered") as caught:
        render(folder)
    assert str(file) in caught.value.what and len(str(caught.value.got)) < 400


def test_after_a_failure_others_are_rendered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the child was ended or not."""
    monkeypatch.setattr(module, "RENDER_S", 1.0)
    write(
        folder,
        "{% if messages[0].content == 'loop' %}" + ENDLESS["nested loops"] + "{% endif %}{{ messages[0].content }}",
    )
    processor = load_processor(ModelConfig(path=str(folder)))
    for said in ("a", "b"):
        with pytest.raises(ModelError):
            processor.apply_chat_template([{"role": "user", "content": "loop"}], tokenize=False)
        assert processor.apply_chat_template([{"role": "user", "content": said}], tokenize=False) == said


def test_a_chat_is_rendered_as_by_transformers(folder: Path) -> None:
    import transformers

    plain: Any = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    processor = load_processor(ModelConfig(path=str(folder)))
    for chat in (CHAT, [{"role": "user", "content": "?"}, {"role": "assistant", "content": "\x1b{{ 1 }}\n"}]):
        for options in ({}, {"add_generation_prompt": True}):
            wanted = plain.apply_chat_template(chat, tokenize=False, **options)
            assert processor.apply_chat_template(chat, tokenize=False, **options) == wanted


def test_prompts_are_made_of_it_and_refused_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENDER_S", 1.0)
    example = Example(id="train/1", problem="one?", image=None, label="one", columns={})
    data = DataConfig(path="unused")
    assert PromptEncoder(load_processor(ModelConfig(path=str(folder))), data).encode(example).text_ids
    write(folder, ENDLESS["nested loops"])
    with pytest.raises(ModelError, match="cannot be rendered"):
        PromptEncoder(load_processor(ModelConfig(path=str(folder))), data).encode(example)


def test_the_file_of_a_template_is_found(folder: Path) -> None:
    """Beside the model in a file of its own, or in one of two JSON files."""
    jinja = folder / "chat_template.jinja"
    assert module.find_template(str(folder), None) == str(jinja)
    text = jinja.read_text()
    jinja.unlink()
    assert module.find_template(str(folder), None) == str(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": text}))
    assert module.find_template(str(folder), None) == str(folder / "tokenizer_config.json")


def test_a_child_ends_with_the_one_it_renders_for(folder: Path) -> None:
    before = children()
    processor = load_processor(ModelConfig(path=str(folder)))
    processor.apply_chat_template(CHAT, tokenize=False)
    assert len(children() - before) == 1
    del processor
    gc.collect()
    assert children() <= before


def test_a_child_holds_no_file_of_its_parent(folder: Path, tmp_path: Path) -> None:
    """The lock of a run folder is free as soon as the run is gone."""
    with (tmp_path / "lock").open("w"):
        before = children()
        processor = load_processor(ModelConfig(path=str(folder)))
        processor.apply_chat_template(CHAT, tokenize=False)
        (child,) = children() - before
        held = [str(entry.readlink()) for entry in Path(f"/proc/{child}/fd").iterdir()]
    assert not any(name.endswith("/lock") for name in held)
    assert psutil.Process(child).rlimit(psutil.RLIMIT_AS)[0] != resource.RLIM_INFINITY
