"""Let a CUDA build of torchvision be imported beside a CPU build of torch.

The ordinary package index holds only torchvision's CUDA build. Its C++ library cannot load without CUDA, so nobody
declares the operators `nms` and `qnms`, and torchvision then fails to attach their shape functions: "operator
torchvision::nms does not exist". vLLM and transformers need torchvision's image transforms, which use neither
operator, so declaring the two is enough.

`deploy/local/setup.py` copies this file into site-packages, with a `.pth` line that imports it in every interpreter:
vLLM and Ray start processes that no plugin reaches in time. Hence nothing but `sys` may be imported here.
"""

import sys

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class TorchvisionCure:
    """A finder that finds nothing: it acts once torchvision has tried its C++ library, before the shape functions."""

    library: object = None  # torch forgets the schemas once their library is collected

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Declare the missing operators; leaves the search for `name` to the ordinary finders."""
        if name == "torchvision._meta_registrations":
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not cls]
            cls.declare_missing()

    @classmethod
    def declare_missing(cls) -> None:
        """Declare the operators no C++ library did; with CUDA their absence is a real fault, left to fail."""
        import torch

        missing = [schema for op, schema in SCHEMAS.items() if not hasattr(torch.ops.torchvision, op)]
        if torch.version.cuda is None and missing:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in missing:
                library.define(schema)
            cls.library = library


sys.meta_path.insert(0, TorchvisionCure)
