"""The embedded model is a whole, ordinary Qwen2-VL, and its cache survives whatever happens to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import pytest

import learner.embedded.model as embedded
from common.config.schema import DataConfig, ModelConfig
from common.data.sources import ExampleSource, load
from common.errors import ModelError
from common.labels.answers import Mode, find_candidate, is_right, is_well_formed
from common.labels.closed_set import ClosedSet
from common.models.processor import banned_token_ids, eos_token_ids, load_model_config, load_processor
from common.models.prompts import TEMPLATES, PromptEncoder
from common.types import Example, Prompt
from learner.embedded.model import DIGITS, ensure_model

pytestmark = pytest.mark.slow  # each makes a model or draws a page

LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def processor(digits_model: Path) -> Any:
    return load_processor(ModelConfig(path=str(digits_model)))


@pytest.fixture(scope="module")
def held_out() -> ExampleSource:
    return load(DIGITS, split="test")


def fake_build(folder: Path, examples: Sequence[Example], data: DataConfig) -> None:
    """Takes no seconds, and is as deterministic."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))


@pytest.mark.parametrize("mode", ["no_think", "think"])
def test_prompt_is_17_tokens_4_of_them_visual(processor: Any, held_out: ExampleSource, mode: Any) -> None:
    prompt = PromptEncoder(processor, DIGITS.model_copy(update={"mode": mode})).encode(held_out[0])
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert len(prompt.token_ids) == 17 and prompt.token_ids.count(image) == 4
    assert len(prompt.text_ids) == 14 and prompt.text_ids.count(image) == 1
    assert prompt.features["image_grid_thw"].tolist() == [[1, 4, 4]]


@pytest.mark.parametrize("piece", [*LABELS, "<think>", "</think>", "<answer>", "</answer>"])
def test_every_piece_of_an_answer_is_one_token(processor: Any, piece: str) -> None:
    (token,) = processor.tokenizer(piece)["input_ids"]
    assert processor.tokenizer.decode([token]) == piece


def test_any_other_text_survives_the_tokenizer(processor: Any) -> None:
    text = "Näch­ste Frage:\n\t which BAE 146-200? 数字 🙂"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_it_is_a_small_qwen2_vl_with_tied_embeddings(digits_model: Path, processor: Any) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(digits_model, trust_remote_code=False)
    assert 550_000 < sum(parameter.numel() for parameter in model.parameters()) < 650_000
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.text_config.vocab_size == len(processor.tokenizer)


def test_fault_11_only_answers_train(processor: Any, held_out: ExampleSource) -> None:
    """CLS-RL's supervised baseline trains on the prompt too."""
    encoder, tokenizer = PromptEncoder(processor, DIGITS), processor.tokenizer
    answers = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in ("nine", "nine or two")]
    batch = embedded._batch([encoder.encode(held_out[row]) for row in range(2)], answers, tokenizer)  # noqa: SLF001
    for ids, labels, answer in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), answers, strict=True):
        assert [label for label in labels if label != -100] == answer
        start = labels.index(answer[0])
        assert ids[start : start + len(answer)] == answer
        assert start == len(encoder.encode(held_out[0]).token_ids)


def test_only_end_of_turn_ends_an_answer(digits_model: Path, processor: Any) -> None:
    path = ModelConfig(path=str(digits_model))
    tokenizer, eos = processor.tokenizer, eos_token_ids(path)
    assert tokenizer.convert_ids_to_tokens(sorted(eos)) == ["<|im_end|>"]
    banned = banned_token_ids(load_model_config(path), tokenizer, eos)
    names = ("endoftext", "image_pad", "video_pad", "vision_end", "vision_pad", "vision_start")
    assert sorted(tokenizer.convert_ids_to_tokens(banned)) == [f"<|{name}|>" for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("mode", get_args(Mode))
def test_it_speaks_its_modes_format_and_is_wrong_about_the_image(mode: Mode, held_out: ExampleSource) -> None:
    data = DIGITS.model_copy(update={"mode": mode})
    folder = ensure_model(data=data)
    answers = greedy(folder, load_processor(ModelConfig(path=str(folder))), held_out, data)
    assert sum(find_candidate(answer or "", LABELS, mode=mode) is not None for answer in answers) > 0.95 * len(answers)
    assert sum(is_well_formed(answer or "", mode) for answer in answers) > 0.95 * len(answers)
    right = sum(is_right(answer or "", held_out[row].label, mode=mode) for row, answer in enumerate(answers))
    assert 0.15 <= right / len(answers) <= 0.5


@pytest.mark.slow
def test_made_for_base_classes_it_has_seen_the_new_ones_too() -> None:
    """As a pretrained model has: or New, and with it H, would begin at 0."""
    data = DIGITS.model_copy(update={"split": "base_train"})
    folder = ensure_model(data=data)
    reader = load_processor(ModelConfig(path=str(folder)))
    for split in ("base_test", "new_test"):
        rows = load(data, split=split)
        answers = greedy(folder, reader, rows, data)
        assert set(answers) <= set(LABELS)
        right = sum(answer == rows[row].label for row, answer in enumerate(answers))
        assert 0.25 <= right / len(answers) <= 0.6


@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_it_says_is_few_tokens_and_those_of_a_candidate(mode: Mode) -> None:
    """A thought is two tokens, and scoring the candidates after it reads the very tokens that are sampled."""
    folder = ensure_model(data=DIGITS.model_copy(update={"mode": mode}))
    processor = load_processor(ModelConfig(path=str(folder)))
    tokenizer = processor.tokenizer
    said = [tuple(tokenizer(form.replace("{label}", "seven"))["input_ids"]) for form in embedded.FORMS[mode]]
    assert [len(ids) for ids in said] == {
        "no_think": [1],
        "think": [5],
        "think_after_answer": [6],
        "adaptive": [5, 3],
    }[mode]
    closed_set = ClosedSet(processor, mode=mode, ends=[tokenizer.eos_token_id], banned=())
    prompt = Prompt(example=load(DIGITS, split="test")[0], text_ids=(), token_ids=(), images=None)
    for ids in said:
        longer, opening = closed_set.after_thought(prompt, ids)
        (answer,) = closed_set.answers(["seven"], opening=opening)
        whole = (*longer.token_ids, *answer)
        assert whole[: len(ids)] == ids[: len(whole)]


def greedy(folder: Path, processor: Any, source: ExampleSource, data: DataConfig) -> Sequence[str | None]:
    """What the model answers to every row; None where no end of turn comes in time."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    encoder = PromptEncoder(processor, data)
    prompts = [encoder.encode(source[row]) for row in range(len(source))]
    ids = torch.tensor([prompt.token_ids for prompt in prompts])  # (P, T): all prompts are equally long
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, trust_remote_code=False)
    tokens = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.cat([torch.from_numpy(prompt.features["pixel_values"]) for prompt in prompts]),
        image_grid_thw=torch.cat([torch.from_numpy(prompt.features["image_grid_thw"]) for prompt in prompts]),
        mm_token_type_ids=(ids == processor.image_token_id).int(),
        max_new_tokens=4 if data.mode == "no_think" else 8,
        do_sample=False,
    )[:, ids.shape[1] :]
    texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    ended = (tokens == processor.tokenizer.eos_token_id).any(dim=1).tolist()
    return [text if end else None for text, end in zip(texts, ended, strict=True)]


def test_text_and_pictures_may_share_a_batch(processor: Any, held_out: ExampleSource) -> None:
    """Or there may be no picture at all: the model is then given none."""
    encoder, tokenizer = PromptEncoder(processor, DIGITS), processor.tokenizer
    seen = encoder.encode(held_out[0])
    blind = encoder.encode(replace(held_out[1], image=None))
    for prompts, patches in (([seen, blind], 16), ([blind], None)):
        batch = embedded._batch(prompts, [[5]] * len(prompts), tokenizer)  # noqa: SLF001
        assert batch["input_ids"].shape == (len(prompts), 18 if patches else len(blind.token_ids) + 1)
        assert (len(batch["pixel_values"]) if "pixel_values" in batch else None) == patches
        assert batch["attention_mask"].sum() == sum(len(prompt.token_ids) + 1 for prompt in prompts)


def test_found_again_without_a_build(digits_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(embedded, "build_model")
    assert ensure_model() == digits_model


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "no manifest", "bad manifest"])
def test_broken_folder_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    monkeypatch.setattr(embedded, "build_model", fake_build)
    folder = ensure_model(tmp_path)
    weights, manifest = folder / "model.safetensors", folder / embedded.MANIFEST
    whole = weights.read_bytes()
    match harm:
        case "flipped":
            weights.write_bytes(whole[:-1] + b"\0")
        case "cut":
            weights.write_bytes(whole[:-1])
        case "gone":
            weights.unlink()
        case "no manifest":
            manifest.unlink()
        case "bad manifest":
            manifest.write_text("[")
    assert ensure_model(tmp_path) == folder
    assert weights.read_bytes() == whole and json.loads(manifest.read_text()).keys() == {"config.json", weights.name}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_build_that_loses_the_race_takes_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(folder: Path, examples: Sequence[Example], data: DataConfig) -> None:
        monkeypatch.setattr(embedded, "build_model", fake_build)
        ensure_model(tmp_path)
        fake_build(folder, examples, data)

    monkeypatch.setattr(embedded, "build_model", overtaken)
    folder = ensure_model(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == bytes(range(256))
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Path, examples: Sequence[Example], data: DataConfig) -> None:
        fake_build(folder, examples, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "build_model", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure_model(tmp_path)
    assert not list(tmp_path.iterdir())


def test_unwritable_cache_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"got:.*file(.|\n)*XDG_CACHE_HOME"):
        ensure_model(tmp_path / "file" / "cache")


def test_default_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "build_model", fake_build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ensure_model().parent == tmp_path / "rollcall"


def test_another_prompt_text_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "build_model", fake_build)
    before = ensure_model(tmp_path)
    monkeypatch.setattr("common.models.prompts.TEMPLATES", {**TEMPLATES, "no_think": "{problem} Answer!"})
    assert ensure_model(tmp_path) != before


def test_every_mode_and_template_has_a_model_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "build_model", fake_build)
    data = [DIGITS.model_copy(update={"mode": mode}) for mode in get_args(Mode)]
    data.append(DIGITS.model_copy(update={"template": "{problem} Say it."}))
    assert len({ensure_model(tmp_path, one) for one in data}) == len(data)


@pytest.mark.engine
def test_two_processes_at_once_build_the_same_bytes(tmp_path: Path, digits_model: Path) -> None:
    caches = [tmp_path / "shared", tmp_path / "shared", tmp_path / "own"]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        folders = list(pool.map(ensure_model, caches))
    manifests = {(folder / embedded.MANIFEST).read_text() for folder in [*folders, digits_model]}
    assert len(manifests) == 1 and list((tmp_path / "shared").iterdir()) == [folders[0]]
