"""Prompts: the question of a row in the words of its mode, then as token ids and image features."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.schema import DataConfig
from common.data.faults import BadRowError, refuse
from common.data.image import digest_image, read_pixels
from common.errors import DataError, ModelError
from common.lru import ByteLRU
from common.models.chat import find_template
from common.models.families import Family
from common.models.picture_ids import PictureIds, lacks_bos, process
from common.models.pictures import make_features
from common.types import Example, ImageFeatures, Images, Prompt, StoredPicture, UnreadPicture

if TYPE_CHECKING:
    from PIL import Image

    from common.data.sources import ExampleSource, Outline

PROBLEM = "{problem}"  # where the row's question goes; any other brace of a template is text
# The first two are from CLS-RL's code, the others from its paper (Li et al. 2025, arXiv:2503.16188, appendix E).
TEMPLATES: Mapping[str, str] = {
    "no_think": "{problem}\n Please directly output the answer.",
    "think": "{problem}\n Please output the thinking process in <think> </think> "
    "and final answer in <answer> </answer> tags.",
    "think_after_answer": "{problem}\n Please first output the answer in <answer> </answer> tags "
    "and then output a brief reasoning process in <reason> </reason> tags.",
    "adaptive": "{problem}\n Please first identify whether this problem requires intermediate thinking or calculation. "
    "If the problem requires thinking or calculation, output the thinking and calculation process inside "
    "<think> </think> tags and the final answer inside <answer> </answer> tags. If no thinking or calculation is "
    "required, directly output the final answer inside <answer> </answer> tags. Your output should follow one of two "
    "cases: (1) '<answer> ... </answer>', (2) '<think> ... </think> <answer> ... </answer>'.",
}
SYSTEM = (
    "You are an assistant who reasons before answering. Write your reasoning between <think> and </think>, "
    "then the answer between <answer> and </answer>."
)


def messages(example: Example, mode: str, template: str | None = None) -> list[dict[str, Any]]:
    """Return the example as a chat: one user turn [image, text], in the words of `template` or of the mode.

    Without an image the turn is text alone; think mode then asks in a system prompt, as CLS-RL does.
    """
    return _chat(example.problem, mode, template, with_image=example.image is not None)


def _chat(problem: str, mode: str, template: str | None, *, with_image: bool) -> list[dict[str, Any]]:
    if not with_image and mode == "think" and template is None:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": problem}]
    text = (TEMPLATES[mode] if template is None else template).replace(PROBLEM, problem)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}] if with_image else text}]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Features:
    text_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    images: Images | None
    nbytes: int


class PromptEncoder:
    """Turns examples into prompts. One processor decides ids and pixels for engine and learner alike (law 4)."""

    def __init__(
        self,
        processor: Any,
        data: DataConfig,
        *,
        family: Family = Family(),  # noqa: B008  # frozen
        vocab_size: int | None = None,
        image_token_id: int | None = None,
        share: Callable[[ImageFeatures], Images] = lambda features: features,
        reads: bool = True,
    ) -> None:
        """Prepare for one model.

        `vocab_size` is the number of token ids that the model has rows for; None is all that its tokenizer has. The
        model puts a picture where `image_token_id` stands; None trusts the processor to know it.
        `share` makes the handle under which image features travel: see `common.object_store`. Unless it `reads`,
        pictures that are stored in files stay unread: whoever needs their features has a `PictureReader`.

        Raises DataError for a `data.template` with special tokens of the model.
        """
        self._processor = processor
        self._data = data
        self._family = family
        self._share, self._reads = share, reads
        self._vocab_size = vocab_size
        self._image_token_id = image_token_id
        self._rendered = lru_cache(maxsize=1024)(self._text)
        self._picture_ids = PictureIds(processor, family, lambda: self._rendered("?", True))
        self._lock = Lock()  # the feed encodes the next prompts while an evaluation encodes its own
        self._salt = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str).encode()
        self._cache: ByteLRU[tuple[str, bytes], _Features] = ByteLRU(data.cache_mb * 2**20)
        added = processor.tokenizer.added_tokens_decoder.values()
        self._special = tuple(token.content for token in added if token.special)
        if found := self._special_in(data.template or ""):
            raise DataError(
                f"data.template holds {found}, a special token of the model",
                got=data.template,
                remedy="take it out: the chat template adds such tokens, and the picture, by itself",
            )

    @property
    def changing(self) -> str | None:
        """What makes the chat template's text differ from one time to the next: the time, or chance. Usually None."""
        found = re.search(r"\bstrftime_now\b|\|\s*random\b", str(getattr(self._processor, "chat_template", "")))
        return found and found[0]

    def encode(self, example: Example) -> Prompt:
        """Return the example as a prompt.

        Raises DataError for what `check` would refuse: a prompt over `data.max_prompt_tokens` is never cut (fault 3).
        """
        key = (example.problem, digest_image(example.image))  # by content: another data set may have the same ids
        with self._lock:
            features = self._cache.get(key)
            if features is None:
                try:
                    features = self._features(example, key[1])
                except BadRowError as fault:
                    raise DataError(
                        f"{example.id} cannot be a prompt", got=fault.reason, remedy=fault.remedy
                    ) from fault
                self._cache.put(key, features, features.nbytes)
        return Prompt(example=example, text_ids=features.text_ids, token_ids=features.token_ids, images=features.images)

    def count(self, text: str) -> int:
        """Return the number of tokens of a text alone; 0 for one that the model cannot say."""
        ids = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        unknown = self._processor.tokenizer.unk_token_id
        return 0 if self._find_beyond(ids) is not None or unknown in ids else len(ids)

    def check(self, source: ExampleSource, outlines: Iterable[Outline] | None = None) -> None:
        """Measure every prompt of `source`, or of `outlines` of its rows, without processing an image.

        Raises one DataError naming every bad row. Its prompt is over `data.max_prompt_tokens`, its text holds special
        tokens of the model, or its image is too narrow. Raises ModelError where the model cannot
        read or find pictures.
        """
        if outlines is None and any(outline.image_size is not None for outline in source.outlines):
            self._check_picture()
        measure = lru_cache(4096)(self._length)  # many rows share one question
        faults: dict[str, BadRowError] = {}
        for outline in source.outlines if outlines is None else outlines:
            try:
                measure(outline.problem, outline.image_size)
            except BadRowError as fault:
                faults[outline.id] = fault
        refuse(source.name, len(source), list(faults.items()))

    def count_square(self, side: int) -> int:
        """Return the tokens of a prompt of one word and a square of so many pixels a side, without making it.

        Raises DataError for a size the family cannot take.
        """
        try:
            return len(self._rendered("?", True)[1]) + self._picture_ids.find((side, side)).added
        except BadRowError as fault:
            raise DataError(f"data.image_size = {side} cannot be", got=fault.reason, remedy=fault.remedy) from fault

    def _length(self, problem: str, image_size: tuple[int, int] | None) -> int:
        """Return T of the prompt, from its text and the image's (height, width). Raises BadRowError over the limit."""
        length = len(self._rendered(problem, image_size is not None)[1])
        if image_size is not None:
            length += self._picture_ids.find(image_size).added
        self._check_length(length)
        return length

    def _check_length(self, length: int) -> None:
        if length > self._data.max_prompt_tokens:
            raise BadRowError(
                f"prompt of {length} tokens is over {self._data.max_prompt_tokens}",
                remedy="raise data.max_prompt_tokens, shorten the question, or lower model.max_pixels",
            )

    def _features(self, example: Example, digest: bytes) -> _Features:
        """Return ids and image features of a prompt, by its picture's `digest`.

        Raises BadRowError for one that cannot be.
        """
        from PIL import Image

        problem, image = example.problem, example.image
        self._length(problem, None if image is None else image.shape[:2])
        text, text_ids = self._rendered(problem, image is not None)
        if image is None:
            return _Features(text_ids=text_ids, token_ids=text_ids, images=None, nbytes=16 * len(text_ids))

        name = hashlib.blake2b(self._salt, key=digest, digest_size=16).hexdigest()
        if isinstance(image, StoredPicture) and not self._reads:
            token_ids = self._picture_ids.expand((text, text_ids), image.shape[:2])
            images: Images = UnreadPicture(digest=name, picture=image, text=self._bare_text, row=example.id)
        else:
            inputs = self._inputs(text, Image.fromarray(read_pixels(image)))
            token_ids = tuple(inputs["input_ids"][0].tolist())
            images = self._share(make_features(name, inputs))
        self._check_length(len(token_ids))  # the text beside a picture may have other tokens than alone
        nbytes = 8 * (len(text_ids) + len(token_ids)) + images.nbytes
        return _Features(text_ids=text_ids, token_ids=token_ids, images=images, nbytes=nbytes)

    @cached_property
    def _bare_text(self) -> str:
        """A prompt of one picture and one word."""
        chat = _chat("?", self._data.mode, PROBLEM, with_image=True)
        return str(self._processor.apply_chat_template(chat, **_RENDER))

    def _text(self, problem: str, with_image: bool) -> tuple[str, tuple[int, ...]]:
        """Return the prompt as text, and its ids before image expansion. It is cached: many rows share one question."""
        text = self._render(problem, with_image=with_image)
        return text, self._ids(text)

    def _render(self, problem: str, *, with_image: bool) -> str:
        """Return the prompt as text, by the model's chat template. Raises BadRowError for special tokens in it."""
        if found := self._special_in(problem):
            raise BadRowError(f"problem holds {found}, a special token of the model", remedy="take it out of the text")
        chat = _chat(problem, self._data.mode, self._data.template, with_image=with_image)
        text: str = self._processor.apply_chat_template(chat, **_RENDER)
        return text

    def _special_in(self, text: str) -> str | None:
        return next((token for token in self._special if token in text), None)

    def _ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text. Raises BadRowError for one that the model has no row for."""
        ids = self._tokenize(text)
        beyond = self._find_beyond(ids)
        if beyond is not None:
            raise BadRowError(
                f"prompt holds {self._processor.tokenizer.convert_ids_to_tokens(beyond)!r}, token {beyond} of a model "
                f"that has ids 0 to {(self._vocab_size or 0) - 1}",
                remedy="give the model with its own tokenizer files",
            )
        return ids

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._processor.tokenizer(text, add_special_tokens=lacks_bos(self._processor, text))["input_ids"])

    def _find_beyond(self, ids: Sequence[int]) -> int | None:
        """Return an id that the model has no row for; None where there is none."""
        last = max(ids, default=0)
        return last if self._vocab_size is not None and last >= self._vocab_size else None

    def _inputs(self, text: str, picture: Image.Image) -> Mapping[str, Any]:
        """Return ids and features of a prompt with a picture. Raises ModelError for whatever the processor raises."""
        try:
            return process(self._processor, text, picture)
        except Exception as error:  # its settings, and its class, are the model's
            raise ModelError(
                f"the processor of {self._processor.tokenizer.name_or_path} cannot read a picture",
                got=f"{type(self._processor).__name__}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                remedy="use the processor_config.json or preprocessor_config.json that came with the weights",
            ) from error

    def _check_picture(self) -> None:
        """Make a prompt of a blank picture.

        Raises ModelError unless its numbers are finite, and what it adds is, mostly, the token that the model looks
        for.
        """
        from PIL import Image

        text, blank = self._render("?", with_image=True), Image.new("RGB", (_BLANK, _BLANK))
        self._check_template(text)
        inputs = self._inputs(text, blank)
        if strange := [name for name, value in inputs.items() if not _is_finite(value)]:
            raise ModelError(
                f"the processor of {self._processor.tokenizer.name_or_path} makes numbers that are not finite",
                got=f"{', '.join(strange)} of a black picture",
                remedy="use the processor_config.json or preprocessor_config.json that came with the weights",
            )
        if self._image_token_id is None:
            return
        added = Counter(inputs["input_ids"][0].tolist())
        added.subtract(self._tokenize(self._render("?", with_image=False)))
        ((most, _),) = added.most_common(1)
        if added[self._image_token_id] < max(added[most], 1):
            raise ModelError(
                "the model does not find the pictures in its prompts",
                got=f"image_token_id = {self._image_token_id} in config.json, and {most} for a picture in a prompt",
                remedy="give the model with the tokenizer, processor and config.json it was published with",
            )

    def _check_template(self, text: str) -> None:
        """Raise ModelError where the chat template writes a chat with a picture as it writes one without."""
        (turn,) = _chat("?", self._data.mode, self._data.template, with_image=True)
        words = [{**turn, "content": turn["content"][1:]}]
        if text == self._processor.apply_chat_template(words, **_RENDER):
            file = find_template(self._processor.tokenizer.name_or_path, None)
            raise ModelError(
                f"the chat template in {file} leaves pictures out",
                got=repr(text[:200]),
                remedy="use the chat template that came with the model, which writes a token for a picture",
            )


_RENDER: Mapping[str, Any] = {
    "tokenize": False,
    "add_generation_prompt": True,
    "processor_kwargs": {"padding": False},  # unused; without any SmolVLM warns of its own, at every prompt
}
_BLANK = 224  # pixels a side of a picture that every family reads


def _is_finite(value: Any) -> bool:
    array = np.asarray(value)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
