"""Image features by value or by reference: what is large goes into Ray's object store once and is mapped where used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.placement import get
from common.types import ImageFeatures

BY_VALUE = 256 << 10  # bytes; a smaller object travels faster inside the message


def shared(features: ImageFeatures) -> Any:
    """A handle of `features`. Needs Ray; the object lives as long as a handle of it."""
    import ray

    return ray.put(features) if features.nbytes > BY_VALUE else features


def opened(handles: Sequence[Any], *, timeout_s: float) -> list[ImageFeatures | None]:
    """The features behind `handles`, in order; those in the object store are mapped, not copied.

    Raises DeadlineError when one does not arrive in time.
    """
    import ray

    refs = [handle for handle in handles if isinstance(handle, ray.ObjectRef)]
    fetched = iter(get(refs, what="image features", timeout_s=timeout_s) if refs else ())
    return [next(fetched) if isinstance(handle, ray.ObjectRef) else handle for handle in handles]
