"""Pictures that the driver leaves unread: whoever reads them gets the very prompt that the driver would have made."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from common.config.schema import DataConfig, ModelConfig
from common.data.image import store_picture
from common.errors import DataError
from common.models.families import family_of
from common.models.picture_ids import Expansion
from common.models.pictures import PictureReader
from common.models.processor import load_model_config, load_processor
from common.models.prompts import PromptEncoder
from common.types import Example, UnreadPicture
from tests.helpers.models import QUESTION, Architecture, build_random_model

DATA = DataConfig(max_prompt_tokens=1 << 20)
QUESTIONS = (QUESTION, "three? Please directly output the answer.\nzero", "\n\nfour", " five")


def draw(width: int, height: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def make_example(
    problem: str, size: tuple[int, int], *, resize: int | None = None, data: bytes | None = None
) -> Example:
    """Make a row with a picture of (width, height), or of whatever bytes."""
    picture = store_picture(
        draw(*size, seed=1) if data is None else data, resize=resize, size=(resize, resize) if resize else size[::-1]
    )
    return Example(id="train/7", problem=problem, image=picture, label="one", columns={})


@pytest.fixture(scope="module", params=get_args(Architecture))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("model") / request.param
    return ModelConfig(path=str(build_random_model(folder, seed=1, architecture=request.param)))


def test_ids_and_features_are_those_of_the_family_s_processor(model: ModelConfig) -> None:
    """Law 4 over every family: several sizes, of which one is made by resizing, under several questions."""
    family, processor = family_of(load_model_config(model)), load_processor(model)
    encoder = PromptEncoder(processor, DATA, family=family, reads=False)
    whole = PromptEncoder(load_processor(model), DATA, family=family)
    reader = PictureReader(model, DATA)
    sizes: list[tuple[tuple[int, int], int | None]] = [((224, 224), None), ((300, 200), 168)]
    sizes += [] if family.square else [((280, 168), None), ((168, 280), None), ((500, 60), None)]
    for size, resize in sizes:
        for problem in QUESTIONS:
            example = make_example(problem, size, resize=resize)
            wanted, found = whole.encode(example), encoder.encode(example)
            assert isinstance(found.images, UnreadPicture)
            assert (found.text_ids, found.token_ids) == (wanted.text_ids, wanted.token_ids)
            features = reader.open(found.images)
            assert features is not None and features.values.keys() == wanted.features.keys()
            for name, value in wanted.features.items():
                np.testing.assert_array_equal(features.values[name], value)
                assert value.dtype == features.values[name].dtype
            assert reader.open(found.images) is features


def test_the_driver_processes_no_picture_but_a_blank_one_of_each_kind(model: ModelConfig) -> None:
    """However many rows, sizes and questions there are: where a size's ids are known, nothing more is."""
    family, processor = family_of(load_model_config(model)), load_processor(model)
    encoder = PromptEncoder(processor, DATA, family=family, reads=False)
    sizes = [(224, 224)] if family.square else [(224, 224), (280, 168)]
    first = [encoder.encode(make_example("?", size)) for size in sizes]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a picture was processed in the driver")

    processor.image_processor.preprocess = refuse
    type(processor.image_processor).__call__, kept = refuse, type(processor.image_processor).__call__
    try:
        for number, size in enumerate(sizes):
            for seed in range(3):
                data = draw(*size, seed=10 + seed)
                prompt = encoder.encode(make_example("?", size, data=data))
                assert prompt.token_ids == first[number].token_ids
    finally:
        type(processor.image_processor).__call__ = kept


def test_a_question_that_runs_into_a_picture_is_tokenized_with_it(tmp_path: Path) -> None:
    """Gemma's picture ends in line breaks, which are one token with those that the question begins with."""
    model = ModelConfig(path=str(build_random_model(tmp_path, seed=1, architecture="gemma3")))
    processor = load_processor(model)
    processor.tokenizer.add_tokens(["\n\n\n"])
    data = DATA.model_copy(update={"template": "{problem}"})
    family = family_of(load_model_config(model))
    reads, leaves = (PromptEncoder(processor, data, family=family, reads=reads) for reads in (True, False))
    example = make_example("\nWhat?", (224, 224))
    assert reads.encode(example).token_ids == leaves.encode(example).token_ids


@pytest.mark.parametrize(
    ("without", "whole"),
    [
        ([1, 9, 2], [1, 9, 9, 9, 2]),
        ([1, 9, 2], [1, 7, 9, 9, 8, 2]),
        ([1, 9, 2, 2], [1, 7, 9, 2, 9, 8, 2, 2]),
        ([9], [9]),
        ([1, 9], [1, 9, 9]),
        ([9, 9, 3], [9, 9, 9, 9, 9, 3]),
    ],
)
def test_an_expansion_says_how_ids_differ(without: list[int], whole: list[int]) -> None:
    expansion = Expansion.between(without, whole)
    assert list(expansion.put_into(tuple(without))) == whole
    assert expansion.added == len(whole) - len(without)


@pytest.mark.parametrize(
    ("data", "why"), [(draw(168, 168, 1), "was"), (b"", "zero bytes"), (b"\xff\xd8\xff broken", "decoded")]
)
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, data: bytes, why: str) -> None:
    model = ModelConfig(path=str(build_random_model(tmp_path / "model", seed=1)))
    prompt = PromptEncoder(load_processor(model), DATA, reads=False).encode(
        make_example("one or two?", (224, 224), data=data)
    )
    assert isinstance(prompt.images, UnreadPicture)
    with pytest.raises(DataError, match="the picture of train/7") as caught:
        PictureReader(model, DATA).open(prompt.images)
    assert why in str(caught.value.got)


def test_the_pictures_used_last_are_kept_as_far_as_the_cache_goes(tmp_path: Path) -> None:
    model = ModelConfig(path=str(build_random_model(tmp_path / "model", seed=1)))
    encoder = PromptEncoder(load_processor(model), DATA, reads=False)
    unread = [encoder.encode(make_example("?", (224, 224), data=draw(224, 224, seed))).images for seed in range(3)]
    one = PictureReader(model, DATA).open(unread[0])  # type: ignore[arg-type]
    assert one is not None and one.nbytes > 2**19
    small = PictureReader(model, replace_cache(DATA, 2 * one.nbytes / 2**20))
    opened = [small.open(images) for images in unread]  # type: ignore[arg-type]
    again = [small.open(images) for images in reversed(unread)]  # type: ignore[arg-type]
    assert again[0] is opened[2] and again[1] is opened[1] and again[2] is not opened[0]
    assert small._seen._held <= 2 * one.nbytes  # noqa: SLF001


def replace_cache(data: DataConfig, cache_mb: float) -> DataConfig:
    return data.model_copy(update={"cache_mb": cache_mb})


def test_the_name_of_a_picture_says_its_file_and_what_is_made_of_it() -> None:
    data = draw(224, 224, 1)
    names = {
        store_picture(data, resize=resize, size=size).digest
        for resize, size in [(None, (224, 224)), (None, (224, 225)), (224, (224, 224)), (168, (168, 168))]
    }
    assert len(names) == 4
    one = store_picture(data, resize=None, size=(224, 224))
    assert store_picture(bytes(data), resize=None, size=(224, 224)) == one
    assert store_picture(draw(224, 224, 2), resize=None, size=(224, 224)).digest != one.digest
    assert replace(one, data=b"") != one
