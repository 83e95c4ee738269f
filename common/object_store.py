"""Image features by value or by reference: large ones go into Ray's object store once and are mapped where used.

Pictures that are stored as files travel as these, and are read where their features are used.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.placement import get
from common.types import ImageFeatures, Images, SharedFeatures, UnreadPicture

BY_VALUE = 256 << 10  # bytes; a smaller object travels faster inside the message


def share_features(features: ImageFeatures) -> ImageFeatures | SharedFeatures:
    """Put large features into the object store and return a reference; return small ones as they are."""
    import ray

    if features.nbytes <= BY_VALUE:
        return features
    return SharedFeatures(digest=features.digest, nbytes=features.nbytes, ref=ray.put(features))


def fetch_features(handles: Sequence[Images | None], *, timeout_s: float) -> list[ImageFeatures | UnreadPicture | None]:
    """Return the features of `handles`, in order; those in the object store are mapped, not copied.

    Pictures that are unread stay so: a `PictureReader` reads them. Raises DeadlineError when features do not arrive in
    time.
    """
    refs = [handle.ref for handle in handles if isinstance(handle, SharedFeatures)]
    fetched = iter(get(refs, what="image features", timeout_s=timeout_s) if refs else ())
    return [next(fetched) if isinstance(handle, SharedFeatures) else handle for handle in handles]
