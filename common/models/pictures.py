"""Pictures as the model reads them, made where they are needed: engines and ranks read the files they were sent."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from common.config.schema import DataConfig, ModelConfig
from common.data.faults import BadRowError
from common.data.image import read_pixels
from common.errors import DataError, raise_as
from common.lru import ByteLRU
from common.models.picture_ids import process
from common.models.processor import load_processor
from common.types import ImageFeatures, UnreadPicture

OF_TEXT = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})  # the learner makes its own


def make_features(digest: str, inputs: Mapping[str, Any]) -> ImageFeatures:
    """Return what a processor has made of the pictures of a prompt."""
    values = {name: np.ascontiguousarray(value) for name, value in inputs.items() if name not in OF_TEXT}
    return ImageFeatures(digest=digest, values=values)


class PictureReader:
    """Makes the features of pictures that the driver left unread, by the processor that the driver has too.

    Those used last are kept, up to `data.cache_mb`: a process reads a picture once a step, however often it needs it.
    """

    def __init__(self, model: ModelConfig, data: DataConfig) -> None:
        self._model, self._most_megapixels = model, data.max_image_megapixels
        self._seen: ByteLRU[str, ImageFeatures] = ByteLRU(data.cache_mb * 2**20)  # by digest

    @cached_property
    def _processor(self) -> Any:
        return load_processor(self._model)

    def open(self, images: ImageFeatures | UnreadPicture | None) -> ImageFeatures | None:
        """Return the features of a picture, which may be there already. Raises DataError where it cannot be read."""
        if not isinstance(images, UnreadPicture):
            return images
        found = self._seen.get(images.digest)
        if found is None:
            found = self._read(images)
            self._seen.put(images.digest, found, found.nbytes)
        return found

    def _read(self, unread: UnreadPicture) -> ImageFeatures:
        from PIL import Image

        what = f"the picture of {unread.row} could be read at first, and now cannot"
        try:
            pixels = read_pixels(unread.picture, max_megapixels=self._most_megapixels)
        except BadRowError as fault:
            raise DataError(what, got=fault.reason, remedy=fault.remedy) from fault
        with raise_as(DataError, what, remedy="use one version of transformers on all hosts"):
            inputs = process(self._processor, unread.text, Image.fromarray(pixels))
        return make_features(unread.digest, inputs)
