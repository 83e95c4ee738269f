"""No docstrings of transformers' own: they are put together at import, and nobody reads them here.

For the docstring of a model's configuration transformers imports all that generates, scikit-learn and pandas with it:
a second in the driver, and as much in an engine for the hundreds of them that vLLM brings in.
"""

from __future__ import annotations

import importlib
from typing import Any


def leave_out_docstrings() -> None:
    """Call it before the first import of a model's configuration or of vLLM."""
    module: Any = importlib.import_module("transformers.utils.auto_docstring")
    module.auto_class_docstring = module.auto_method_docstring = lambda described, **_: described
