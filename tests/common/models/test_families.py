"""Every family goes the same way from an example to a prompt, and from names to the engine's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from common.config.schema import DataConfig, ModelConfig
from common.data.image import read_pixels
from common.errors import DataError, ModelError
from common.models.consistency import check_architecture, check_image_processor, check_rope
from common.models.families import FAMILIES, OTHER, engine_name, family_of
from common.models.processor import banned_token_ids, eos_token_ids, load_model_config, load_processor
from common.models.prompts import PromptEncoder
from common.types import Example
from tests.helpers.models import QUESTION, Architecture, build_random_model

SIZES = {"aria": [(56, 56)], "mistral3": [(56, 56), (33, 71)]}
DEFAULT_SIZES = [(56, 56), (28, 28), (33, 71), (200, 90)]


@pytest.fixture(scope="module", params=get_args(Architecture))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a random model, named after its family."""
    return build_random_model(tmp_path_factory.mktemp("model") / request.param, seed=1, architecture=request.param)


def test_the_parts_of_every_family_fit(folder: Path) -> None:
    model = ModelConfig(path=str(folder))
    config, processor = load_model_config(model), load_processor(model)
    check_architecture(folder.name, config)
    check_rope(folder.name, config)
    check_image_processor(folder.name, config, processor.image_processor)
    for data in (DataConfig(), DataConfig(mode="think"), DataConfig(template="What is it? {problem}")):
        encoder = PromptEncoder(
            processor, data, family=family_of(config), image_token_id=getattr(config, "image_token_id", None)
        )
        encoder._check_picture()  # noqa: SLF001
        assert not encoder.changing


@pytest.mark.parametrize(
    ("kind", "text"),
    [  # as published, in the words of their time
        ("Qwen2VL", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}),
        ("Qwen2_5_VL", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}),
        ("Qwen3VL", {"rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]}, "head_dim": 128}),
        ("Glm4v", {"rope_scaling": {"mrope_section": [8, 12, 12]}, "head_dim": 128, "partial_rotary_factor": 0.5}),
    ],
)
def test_published_sections_fit(kind: str, text: dict[str, Any]) -> None:
    import transformers

    sizes = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(text_config={**sizes, **text})
    check_rope(kind, config)
    config.get_text_config().rope_parameters["mrope_section"][0] += 1
    with pytest.raises(ModelError, match="do not fit its heads"):
        check_rope(kind, config)


def example(size: tuple[int, int] | None) -> Example:
    image = None if size is None else np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Example(id="test/0", problem=QUESTION, image=image, label="one", columns={})


def test_the_length_of_a_prompt_is_known_without_its_pixels(folder: Path) -> None:
    model = ModelConfig(path=str(folder))
    processor, config = load_processor(model), load_model_config(model)
    encoder = PromptEncoder(processor, DataConfig(), family=family_of(config))
    for size in [None, *SIZES.get(folder.name, DEFAULT_SIZES)]:
        row = example(size)
        prompt = encoder.encode(row)
        assert encoder._length(QUESTION, size) == len(prompt.token_ids)  # noqa: SLF001
        if row.image is None:
            assert prompt.images is None
            continue
        text = processor.apply_chat_template(_chat(), tokenize=False, add_generation_prompt=True)
        whole: Any = processor(text=[text], images=[Image.fromarray(read_pixels(row.image))], return_tensors="np")
        assert prompt.token_ids == tuple(whole["input_ids"][0])
        assert prompt.token_ids.count(config.image_token_id) > 1 or size == (28, 28)
        np.testing.assert_array_equal(prompt.features["pixel_values"], whole["pixel_values"])
        assert not set(prompt.features) & {"input_ids", "token_type_ids"}


def _chat() -> list[dict[str, Any]]:
    from common.models.prompts import TEMPLATES

    text = TEMPLATES["no_think"].format(problem=QUESTION)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def test_no_answer_may_hold_what_stands_for_pictures(folder: Path) -> None:
    model = ModelConfig(path=str(folder))
    config, tokenizer = load_model_config(model), load_processor(model).tokenizer
    banned = banned_token_ids(config, tokenizer, eos_token_ids(model))
    prompt = PromptEncoder(load_processor(model), DataConfig()).encode(example((56, 56)))
    text = PromptEncoder(load_processor(model), DataConfig()).encode(example(None))
    marked = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special = marked & {*prompt.token_ids} - {*text.token_ids}
    assert config.image_token_id in special  # the others are what its processor puts around it
    assert special <= set(banned)
    assert tokenizer.eos_token_id not in banned
    assert set(family_of(config).marks) <= set(tokenizer.get_vocab())


@pytest.mark.parametrize(("family", "size"), [("aria", (56, 84)), ("mistral3", (28, 28))])
def test_a_picture_the_family_reads_wrongly_is_refused(tmp_path: Path, family: Any, size: tuple[int, int]) -> None:
    """Aria's padding is read differently by vLLM; one merged token breaks Mistral 3 in transformers."""
    processor = load_processor(ModelConfig(path=str(build_random_model(tmp_path, seed=1, architecture=family))))
    encoder = PromptEncoder(processor, DataConfig(), family=FAMILIES[family])
    with pytest.raises(DataError, match=str(size[1])) as caught:
        encoder.encode(example(size))
    assert "data.image_size" in caught.value.remedy


def test_names_of_siglip_towers_are_the_engines(folder: Path) -> None:
    config = load_model_config(ModelConfig(path=str(folder)))
    renamed = folder.name in ("llava_onevision", "gemma3", "llava")
    bare, full = "model.vision_tower.encoder.x", "model.vision_tower.vision_model.encoder.x"
    assert engine_name(bare, config) == (full if renamed else bare)
    assert engine_name(full, config) == full
    assert engine_name("model.language_model.x", config) == "model.language_model.x"


def test_a_family_nobody_tried_goes_the_plain_way() -> None:
    from transformers import LlavaConfig

    assert family_of(LlavaConfig()) is OTHER
    assert all(family.shared_prefix for family in FAMILIES.values())


def test_a_chat_template_that_begins_the_text_itself_is_not_begun_twice(tmp_path: Path) -> None:
    processor = load_processor(ModelConfig(path=str(build_random_model(tmp_path, seed=1, architecture="gemma3"))))
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.add_bos_token = True
    prompt = PromptEncoder(processor, DataConfig()).encode(example((56, 56)))
    assert prompt.token_ids[:2] != (tokenizer.bos_token_id,) * 2
    assert prompt.text_ids[:2] != (tokenizer.bos_token_id,) * 2
    assert prompt.token_ids[0] == prompt.text_ids[0] == tokenizer.bos_token_id


def test_a_missing_package_of_a_family_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    model = ModelConfig(path=str(build_random_model(tmp_path, seed=1, architecture="smolvlm")))
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ModelError, match="num2words"):
        load_processor(model)
