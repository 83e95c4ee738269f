"""The ids of a prompt with a picture, from the picture's size alone: its pixels need not be read for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from common.data.faults import BadRowError
from common.models.families import Family

if TYPE_CHECKING:
    from PIL import Image

OTHER_SIZE = "set data.image_size, or crop the image"
Size = tuple[int, int]  # (height, width) of a picture as the model gets it
Text = tuple[str, tuple[int, ...]]  # a prompt as text, and its ids before image expansion


class Expansion(NamedTuple):
    """What a picture makes of the ids of a prompt: `replaced` of them, from `start` on, give way to `ids`.

    In Qwen2-VL one token stands for a picture, and gives way to one for every 28 x 28 pixels:
    [user, <|image_pad|>, what, is, it] becomes [user, <|image_pad|>, <|image_pad|>, <|image_pad|>, what, is, it].
    """

    start: int
    replaced: int
    ids: tuple[int, ...]

    @classmethod
    def between(cls, without: Sequence[int], whole: Sequence[int]) -> Expansion:
        """Find the difference between the ids of a text alone and of the same text with a picture."""
        least = min(len(without), len(whole))
        start = next((at for at in range(least) if without[at] != whole[at]), least)
        end = next((at for at in range(least - start) if without[-1 - at] != whole[-1 - at]), least - start)
        return cls(start, len(without) - end - start, tuple(whole[start : len(whole) - end]))

    @property
    def added(self) -> int:
        """How many more ids there are with the picture."""
        return len(self.ids) - self.replaced

    def put_into(self, without: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ids of another text with the same picture: pictures stand before all text of a row."""
        return (*without[: self.start], *self.ids, *without[self.start + self.replaced :])


class PictureIds:
    """Reckons the ids of prompts with pictures. Each size, or what many sizes have in common, is measured once."""

    def __init__(self, processor: Any, family: Family, sample: Callable[[], Text]) -> None:
        """Prepare for one model.

        Args:
            sample: returns any prompt with a picture.
        """
        self._processor, self._family, self._sample = processor, family, sample
        self._by_size: dict[Size, Expansion] = {}
        self._kinds: dict[Expansion, tuple[Expansion, Size]] = {}  # those that differ, each with a size
        self._blank_ids = lru_cache(maxsize=1024)(self._process_blank)

    def find(self, size: Size) -> Expansion:
        """Return what a picture of that size makes of the ids of a prompt.

        Raises BadRowError for a size the family cannot take.
        """
        found = self._by_size.get(size)
        if found is None:
            measured = self._measure(size)
            found, _ = self._kinds.setdefault(measured, (measured, size))
            self._by_size[size] = found
        return found

    def expand(self, text: Text, size: Size) -> tuple[int, ...]:
        """Return the ids of a prompt with a picture of that size. Raises BadRowError as `find` does."""
        expansion, like = self._kinds[self.find(size)]
        return expansion.put_into(text[1]) if self._stands_alone(expansion) else self._blank_ids(text[0], like)

    def _measure(self, size: Size) -> Expansion:
        if self._family.square and size[0] != size[1]:
            raise BadRowError(f"image of {size}: this model takes squares only", remedy=OTHER_SIZE)
        images = self._processor.image_processor
        text, text_ids = self._sample()
        try:
            if hasattr(images, "merge_size"):  # the Qwens: one token in the text stands for all
                count = int(images.get_number_of_image_patches(*size)) // int(images.merge_size) ** 2
                token = self._processor.image_token_id
                start = text_ids.index(token) if token in text_ids else 0
                return Expansion(start=start, replaced=1, ids=(token,) * count)
            ids = self._blank_ids(text, size)
        except ValueError as error:
            raise BadRowError(f"image of {size}: {error}", remedy=OTHER_SIZE) from error
        if ids.count(self._processor.image_token_id) < self._family.fewest_image_tokens:
            raise BadRowError(f"image of {size} is too small for this model", remedy=OTHER_SIZE)
        return Expansion.between(text_ids, ids)

    def _process_blank(self, text: str, size: Size) -> tuple[int, ...]:
        """Return the ids of a text with a blank picture of that size: marks of rows and tiles are among them."""
        from PIL import Image

        blank = Image.new("RGB", (size[1], size[0]))
        return tuple(process(self._processor, text, blank)["input_ids"][0].tolist())

    def _stands_alone(self, expansion: Expansion) -> bool:
        """Whether the text around a picture has the tokens that it has around the mark for one.

        Special tokens divide a text. In Gemma 3 line breaks stand around a picture: they are one token with those that
        the question begins with.
        """
        if not expansion.ids:
            return True
        _, text_ids = self._sample()
        given_way = text_ids[expansion.start : expansion.start + expansion.replaced]
        edges = {expansion.ids[0], expansion.ids[-1], *given_way}
        return edges <= self._dividers or edges == {self._processor.image_token_id}

    @cached_property
    def _dividers(self) -> frozenset[int]:
        """The ids of tokens that never depend on what stands beside them."""
        tokens = self._processor.tokenizer.added_tokens_decoder.items()
        return frozenset(number for number, token in tokens if token.special and not (token.lstrip or token.rstrip))


def process(processor: Any, text: str, picture: Image.Image) -> Mapping[str, Any]:
    """Return ids and features of a prompt with a picture, as the model's own processor makes them."""
    inputs: Mapping[str, Any] = processor(
        text=[text], images=[picture], return_tensors="np", add_special_tokens=lacks_bos(processor, text)
    )
    return inputs


def lacks_bos(processor: Any, text: str) -> bool:
    """Whether the tokenizer must add its first token: some chat templates write it themselves."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))
