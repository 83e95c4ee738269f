"""Prompts are what the one processor makes of them: same ids, same grids, never cut."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from common.config.schema import OBJECT_QUESTION, DataConfig, ModelConfig
from common.data.formats.digits import LABELS
from common.data.reshuffle import Reshuffle
from common.data.sources import ExampleSource, Outline, load
from common.errors import DataError, ModelError
from common.labels.candidates import with_candidates
from common.models.families import FAMILIES
from common.models.processor import banned_token_ids, eos_token_ids, image_size, load_model_config, load_processor
from common.models.prompts import SYSTEM, TEMPLATES, PromptEncoder, messages
from common.types import Example

PROBLEM = with_candidates(OBJECT_QUESTION, LABELS)

if TYPE_CHECKING:
    from transformers import Qwen2VLProcessor

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL without weights: configuration, tokenizer and processor."""
    from transformers import GenerationConfig, Qwen2VLConfig

    from learner.embedded.tokenizer import build_processor, token_ids

    place = tmp_path_factory.mktemp("model")
    processor = build_processor([PROBLEM, SYSTEM], size_limit=400)
    tokenizer = processor.tokenizer
    config = Qwen2VLConfig(text_config={"vocab_size": len(tokenizer) + 3}, **token_ids(tokenizer))
    config.save_pretrained(place)
    processor.save_pretrained(place)
    GenerationConfig.from_dict({"eos_token_id": tokenizer.eos_token_id}).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def processor(folder: Path) -> Qwen2VLProcessor:
    found: Qwen2VLProcessor = load_processor(ModelConfig(path=str(folder), max_pixels=28 * 28 * 30))
    return found


def example(problem: str = PROBLEM, size: tuple[int, int] | None = (56, 56), seed: int = 0) -> Example:
    image = None if size is None else np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Example(id="train/0", problem=problem, image=image, label="one", columns={})


class Rows:
    """A source of outlines."""

    name = "rows"

    def __init__(self, *rows: tuple[str, tuple[int, int] | None]) -> None:
        self.outlines = tuple(
            Outline(id=f"train/{i}", problem=problem, label="one", image_size=size)
            for i, (problem, size) in enumerate(rows)
        )

    def __len__(self) -> int:
        return len(self.outlines)


def rows(*pairs: tuple[str, tuple[int, int] | None]) -> ExampleSource:
    return cast(ExampleSource, Rows(*pairs))


@pytest.mark.parametrize(
    ("mode", "tail"),
    [
        ("no_think", "\n Please directly output the answer."),
        (
            "think",
            "\n Please output the thinking process in <think> </think> and final answer in <answer> </answer> tags.",
        ),
        (
            "think_after_answer",
            (
                "\n Please first output the answer in <answer> </answer> tags "
                "and then output a brief reasoning process in <reason> </reason> tags."
            ),
        ),
    ],
)
def test_templates_are_those_of_cls_rl_and_its_paper(processor: Qwen2VLProcessor, mode: str, tail: str) -> None:
    assert TEMPLATES[mode].format(problem="{x}?") == "{x}?" + tail
    data = DataConfig.model_validate({"mode": mode})
    text = processor.tokenizer.decode(PromptEncoder(processor, data).encode(example("{x}?")).text_ids)
    assert text.endswith(
        f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{{x}}?{tail}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_text_only_rows_get_the_system_prompt(processor: Qwen2VLProcessor) -> None:
    prompt = PromptEncoder(processor, DataConfig(mode="think")).encode(example("2 or 3?", None))
    text = processor.tokenizer.decode(prompt.token_ids)
    system = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    assert text == system + "<|im_start|>user\n2 or 3?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.text_ids == prompt.token_ids
    assert prompt.images is None
    assert [turn["role"] for turn in messages(example(size=None), "think")] == ["system", "user"]
    (turn,) = messages(example("2 or 3?", None), "no_think")  # a prompt to think would contradict the mode
    assert turn == {"role": "user", "content": "2 or 3?\n Please directly output the answer."}


def test_a_template_of_the_users_replaces_the_modes(processor: Qwen2VLProcessor) -> None:
    data = DataConfig(mode="think", template="Look: {problem} {so} {}")
    with_picture = processor.tokenizer.decode(PromptEncoder(processor, data).encode(example("{x}?")).text_ids)
    assert "<|vision_end|>Look: {x}? {so} {}<|im_end|>" in with_picture
    without = processor.tokenizer.decode(PromptEncoder(processor, data).encode(example("{x}?", None)).text_ids)
    assert "<|im_start|>user\nLook: {x}? {so} {}<|im_end|>" in without
    with pytest.raises(DataError, match=r"data\.template holds <.im_end.>"):
        PromptEncoder(processor, DataConfig(template="{problem}<|im_end|>"))


@pytest.mark.parametrize("size", [(56, 56), (8, 8), (100, 300), (301, 97), (400, 400)])
def test_fault_4_ids_grid_and_pixels_come_from_one_processor(
    processor: Qwen2VLProcessor, size: tuple[int, int]
) -> None:
    data = DataConfig()
    prompt = PromptEncoder(processor, data).encode(example(size=size))
    pixels = prompt.features["pixel_values"]
    assert pixels.dtype == np.float32
    ((time_, height, width),) = prompt.features["image_grid_thw"].tolist()
    patches = time_ * height * width
    assert pixels.shape == (patches, 3 * 2 * 14 * 14)
    pad = processor.image_token_id
    assert prompt.text_ids.count(pad) == 1
    place = prompt.text_ids.index(pad)
    expanded = (*prompt.text_ids[:place], *[pad] * (patches // 4), *prompt.text_ids[place + 1 :])
    assert prompt.token_ids == expanded
    limit = data.model_copy(update={"max_prompt_tokens": len(expanded)})
    PromptEncoder(processor, limit).check(rows((PROBLEM, size)))  # the length is known without the pixels


def test_fault_3_a_prompt_over_the_limit_is_refused_not_cut(processor: Qwen2VLProcessor) -> None:
    whole = PromptEncoder(processor, DataConfig()).encode(example())
    short = PromptEncoder(processor, DataConfig(max_prompt_tokens=len(whole.token_ids) - 1))
    with pytest.raises(DataError, match=f"prompt of {len(whole.token_ids)} tokens is over"):
        short.encode(example())
    with pytest.raises(DataError, match="2 of 3 rows of rows") as caught:
        short.check(rows((PROBLEM, (56, 56)), ("?", (56, 56)), (PROBLEM, (200, 56))))
    assert "train/0: prompt of" in str(caught.value.got) and "train/2: prompt of" in str(caught.value.got)
    assert "data.max_prompt_tokens" in caught.value.remedy


def test_text_that_would_become_special_tokens_is_refused(processor: Qwen2VLProcessor) -> None:
    with pytest.raises(DataError, match=r"train/1: problem holds <.image_pad.>"):
        PromptEncoder(processor, DataConfig()).check(rows(("?", None), ("a <|image_pad|> b", (56, 56))))


def test_an_image_the_model_cannot_take_is_refused(processor: Qwen2VLProcessor) -> None:
    with pytest.raises(DataError, match="aspect ratio"):
        PromptEncoder(processor, DataConfig()).check(rows(("?", (1, 300))))


def test_the_cache_goes_by_content_and_hands_on_the_example_given(processor: Qwen2VLProcessor) -> None:
    encoder = PromptEncoder(processor, DataConfig(cache_mb=1))
    one, two = example(seed=1), example(seed=2)  # same id, as a held-out set from elsewhere may have
    first, second = encoder.encode(one), encoder.encode(two)
    assert first.images is encoder.encode(example(seed=1)).images
    assert first.images is not second.images
    assert first.images and second.images and first.images.digest != second.images.digest
    assert encoder.encode(two).example is two
    forgetful = PromptEncoder(processor, DataConfig(cache_mb=0))
    assert forgetful.encode(one).images is not forgetful.encode(one).images


@pytest.mark.parametrize("kind", ["Qwen2VLImageProcessor", "Qwen2VLImageProcessorPil"])
def test_pixel_limits_take_effect_on_both_image_processors(folder: Path, kind: str) -> None:
    import transformers

    processor = load_processor(ModelConfig(path=str(folder), min_pixels=112 * 112, max_pixels=140 * 140))
    size = processor.image_processor.size
    processor.image_processor = getattr(transformers, kind).from_pretrained(
        str(folder), trust_remote_code=False, size=size
    )
    encoder = PromptEncoder(processor, DataConfig())
    assert encoder.encode(example(size=(56, 56))).features["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert encoder.encode(example(size=(400, 400))).features["image_grid_thw"].tolist() == [[1, 10, 10]]


def test_pixel_limits_are_those_of_cls_rl_unless_set(folder: Path) -> None:
    assert load_processor(ModelConfig(path=str(folder))).image_processor.size == {
        "shortest_edge": 3136,
        "longest_edge": 401408,
    }
    qwen = FAMILIES["qwen2_vl"]
    assert image_size(ModelConfig(max_pixels=10000), qwen) == {"shortest_edge": 3136, "longest_edge": 10000}
    with pytest.raises(ModelError, match="above"):
        image_size(ModelConfig(max_pixels=1000), qwen)
    with pytest.raises(ModelError, match="have no effect"):
        image_size(ModelConfig(max_pixels=1000), FAMILIES["gemma3"])
    assert image_size(ModelConfig(), FAMILIES["gemma3"]) is None


def test_banned_tokens(folder: Path, processor: Qwen2VLProcessor) -> None:
    tokenizer, model = processor.tokenizer, ModelConfig(path=str(folder))
    config, eos = load_model_config(model), eos_token_ids(model)
    assert eos == {tokenizer.eos_token_id}
    banned = banned_token_ids(config, tokenizer, eos)
    names = {tokenizer.convert_ids_to_tokens(token) for token in banned if token < len(tokenizer)}
    vision = {f"<|{name}|>" for name in ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")}
    assert names == vision | {"<|endoftext|>"}
    assert [token for token in banned if token >= len(tokenizer)] == [len(tokenizer) + i for i in range(3)]
    assert tokenizer.pad_token_id not in banned_token_ids(config, tokenizer, {*eos, tokenizer.pad_token_id})


def test_unsupported_family(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model_type llama") as caught:
        load_processor(ModelConfig(path=str(tmp_path)))
    assert "qwen2_5_vl" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("processor_config.json", "{"),
        ("chat_template.jinja", None),
    ],
)
def test_a_damaged_model_folder_is_named(folder: Path, tmp_path: Path, name: str, content: str | None) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "model"))
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_text(content)
    with pytest.raises(ModelError, match=str(broken)):
        load_processor(ModelConfig(path=str(broken)))


def test_unreachable_hub_says_so_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        load_processor(ModelConfig(path="nobody/absent"))
    assert "HF_HUB_OFFLINE=1" in caught.value.remedy
    assert time.monotonic() - start < 10


@pytest.mark.slow
@pytest.mark.parametrize("anew", [False, True])
def test_reshuffled_questions_are_measured_at_every_visit(processor: Qwen2VLProcessor, anew: bool) -> None:
    source = load(DataConfig(image_size=56), split="test")
    reshuffle = Reshuffle(source, seed=1, anew=anew)
    encoder = PromptEncoder(processor, DataConfig(image_size=56))
    own = len(encoder.encode(source[0]).token_ids)
    longest = max(
        len(encoder.encode(reshuffle(source[row], visit)).token_ids) for row in range(len(source)) for visit in (0, 1)
    )
    assert own < longest
    fits, short = (
        PromptEncoder(processor, DataConfig(image_size=56, max_prompt_tokens=limit)) for limit in (longest, longest - 1)
    )
    fits.check(source, reshuffle.visits(source, 2))
    short.check(source)
    with pytest.raises(DataError, match=f"prompt of {longest} tokens is over {longest - 1}"):
        short.check(source, reshuffle.visits(source, 2))
