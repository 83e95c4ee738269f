"""Direct load: every tensor is copied straight to the parameter of a running vLLM model in which it ends, on a CPU.

vLLM's own loader asks for every tensor, layer by layer and name by name, where it goes. The answer never changes. So
the copies are recorded while vLLM loads once (`CopyRecorder`) and repeated from then on (`DirectLoader.load`). They are
trusted only after vLLM's loader and they have left the same model behind (`DirectLoader.fingerprint`).

Example: of a layer with 4 x 4 projections vLLM keeps one parameter `qkv_proj.weight` of shape (12, 4). Three copies
fill it. That of `k_proj.weight` is

    CopyStep(
        source="model.layers.0.self_attn.k_proj.weight",
        source_view=StridedView(shape=(4, 4), stride=(4, 1), offset=0),  # all of the tensor
        target_view=StridedView(shape=(4, 4), stride=(4, 1), offset=16),  # rows 4 to 7 of the parameter
    )
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.checksum import checksum

# Classes of vLLM that keep a layer's weight packed for oneDNN, on a CPU. The first throws the plain weight away, the
# second keeps it beside the packed one.
PACKED, PACKED_AND_PLAIN = "UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"


class UnsupportedLoadError(Exception):
    """vLLM does more with a tensor than copy it: only its own loader can be trusted."""


class StridedView(NamedTuple):
    """A part of a tensor, in the terms of `torch.as_strided`; all in elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # from the first element of the tensor

    @classmethod
    def of(cls, part: Tensor, whole_offset: int = 0) -> StridedView:
        """Describe `part` of a tensor that begins at `whole_offset` of the storage both share."""
        return cls(tuple(part.shape), part.stride(), int(part.storage_offset()) - whole_offset)

    def cut_from(self, tensor: Tensor) -> Tensor:
        """Return this part of `tensor`, over the same memory."""
        return tensor.as_strided(self.shape, self.stride, self.offset + int(tensor.storage_offset()))


class CopyStep(NamedTuple):
    """One copy: a part of the tensor called `source` into a part of a parameter. See the example above."""

    source: str
    source_view: StridedView
    target_view: StridedView


@dataclass(slots=True, eq=False)
class TargetParameter:
    """A parameter of a layer, and all the copies that fill it."""

    layer: torch.nn.Module
    name: str
    view: StridedView  # the whole parameter, as vLLM loads it
    dtype: torch.dtype
    steps: dict[CopyStep, None] = field(default_factory=dict)  # a set that keeps its order

    def fill(self, parameter: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Make every copy into `parameter`. Raises KeyError for a source that `tensors` lacks."""
        for source, source_view, target_view in self.steps:
            target_view.cut_from(parameter).copy_(source_view.cut_from(tensors[source]))

    def find_whole_source(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Return the one tensor that is the whole parameter as it lies in memory; None where there is none."""
        if len(self.steps) > 1:
            return None
        ((source, source_view, target_view),) = self.steps
        tensor = tensors[source]
        fills_it = target_view == self.view
        same_layout = source_view.stride == target_view.stride and tensor.dtype == self.dtype
        return source_view.cut_from(tensor) if fills_it and same_layout else None


class _SourceIndex:
    """Finds the tensor that a view is a part of. Tensors lie apart in memory, or are tied: then either name does."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._by_address = {tensor.data_ptr(): (name, tensor) for name, tensor in tensors if tensor.numel()}
        self._addresses = sorted(self._by_address)

    def find(self, view: Tensor) -> tuple[str, StridedView] | None:
        """Return the tensor's name and which part of it `view` is; None where it is a part of no tensor."""
        if view.is_meta:
            return None

        # The nearest tensor that begins at or before the view.
        place = bisect_right(self._addresses, view.data_ptr())
        if not place:
            return None
        name, tensor = self._by_address[self._addresses[place - 1]]
        if view.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or view.dtype != tensor.dtype:
            return None

        # The view must also end inside it.
        part = StridedView.of(view, int(tensor.storage_offset()))
        last = sum((size - 1) * step for size, step in zip(part.shape, part.stride, strict=True))
        return (name, part) if part.offset + last < tensor.numel() else None


class CopyRecorder(TorchDispatchMode):
    """Records, while it is entered, every copy from one of `tensors` into a parameter of `model`.

    Enter it between vLLM's `initialize_layerwise_reload` and `finalize_layerwise_reload`. The parameters are on the
    meta device then, and vLLM makes every copy there once, to count what a layer still lacks.
    """

    def __init__(self, model: torch.nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sources = _SourceIndex(tensors)
        held = [(layer, name, tensor) for layer in model.modules() for name, tensor in _own_tensors(layer)]
        self._kept_alive = [tensor for _, _, tensor in held]  # no other storage may get the identity of one of these
        self._targets = {
            _storage_id(tensor): TargetParameter(layer, name, StridedView.of(tensor), tensor.dtype)
            for layer, name, tensor in held
        }
        self._unsupported: list[str] = []  # operations that are no copies of a tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if getattr(func, "_schema", None) is not None and func._schema.is_mutable and args:  # noqa: SLF001
            self._record(func, args)
        return out

    def _record(self, func: Any, args: Sequence[Any]) -> None:
        """Record an operation that writes into `args[0]`, if that is a part of a parameter."""
        target = self._targets.get(_storage_id(args[0])) if isinstance(args[0], Tensor) else None
        if target is None:
            return

        source = args[1] if len(args) > 1 else None
        found = None
        if func is torch.ops.aten.copy_.default and isinstance(source, Tensor):
            if _storage_id(source) == _storage_id(args[0]):
                return  # vLLM puts back what it has put there
            found = self._sources.find(source) if source.shape == args[0].shape else None
        elif func is torch.ops.aten.fill_.Scalar and StridedView.of(args[0]) != target.view:
            return  # padding, which stays as it is

        if found is None:
            self._unsupported.append(f"{func} into {target.name} of a {type(target.layer).__name__}")
        else:
            target.steps[CopyStep(*found, StridedView.of(args[0]))] = None

    def make_loader(self, model: torch.nn.Module) -> DirectLoader:
        """Return a loader that repeats what was recorded; call it once vLLM has finished.

        Raises:
            UnsupportedLoadError: some parameter holds something else than copies of tensors.
        """
        if self._unsupported:
            raise UnsupportedLoadError(self._unsupported[0])
        return DirectLoader(model, [target for target in self._targets.values() if target.steps])


class DirectLoader:
    """Repeats recorded copies into a model on a CPU, and does with each layer what vLLM does after loading it."""

    def __init__(self, model: torch.nn.Module, targets: Sequence[TargetParameter]) -> None:
        self._model = model
        self._targets: dict[torch.nn.Module, list[TargetParameter]] = {}
        for target in targets:
            _check_supported(target)
            self._targets.setdefault(target.layer, []).append(target)

        self._sources: dict[torch.nn.Module, set[str]] = {
            layer: {step.source for target in own for step in target.steps} for layer, own in self._targets.items()
        }
        # A head that shares the embedding's weight has its own packed copy of it, and nothing is ever copied into it.
        self._tied_heads = [
            layer for layer in model.modules() if _method_name(layer) == PACKED_AND_PLAIN and layer not in self._targets
        ]
        self._scratch: dict[torch.dtype, Tensor] = {}

    def load(self, tensors: Mapping[str, Tensor], *, unchanged: Collection[str] = frozenset()) -> None:
        """Copy each tensor into the parameters that it fills.

        A layer stays as it is when none of its tensors is here (see `rollout.weight_loader`), or all of them are
        `unchanged`.

        Args:
            tensors: by Hugging Face name.
            unchanged: names of those that are the same as at the load before.

        Raises:
            KeyError: some of a layer's tensors are here, and others are not.
        """
        changed = tensors.keys() - unchanged
        layers = [layer for layer, sources in self._sources.items() if not changed.isdisjoint(sources)]

        for layer in layers:
            for target in self._targets[layer]:
                self._load_parameter(target, tensors)
            if (method := getattr(layer, "quant_method", None)) is not None:
                method.process_weights_after_loading(layer)

        if any(_method_name(layer) == PACKED_AND_PLAIN for layer in layers):
            for head in self._tied_heads:
                head.quant_method.process_weights_after_loading(head)  # type: ignore[union-attr, operator]

    def _load_parameter(self, target: TargetParameter, tensors: Mapping[str, Tensor]) -> None:
        """Fill one parameter, which must be made anew where vLLM has thrown it away."""
        parameter = getattr(target.layer, target.name)
        if parameter.numel():
            target.fill(parameter.data, tensors)
            return

        # vLLM has thrown the plain weight away: give the layer one to pack. Packing copies it, and throws it away
        # before anybody can see whose memory it is.
        weight = target.find_whole_source(tensors)
        if weight is None:
            weight = self._borrow_scratch(target)
            target.fill(weight, tensors)
        setattr(target.layer, target.name, torch.nn.Parameter(weight, requires_grad=False))

    def _borrow_scratch(self, target: TargetParameter) -> Tensor:
        """Return room for a weight, the same for every layer: fresh memory would cost more than the copy."""
        size = int(torch.Size(target.view.shape).numel())
        scratch = self._scratch.get(target.dtype)
        if scratch is None or len(scratch) < size:
            scratch = self._scratch[target.dtype] = torch.empty(size, dtype=target.dtype)
        return scratch[:size].view(target.view.shape)

    def fingerprint(self) -> dict[str, int]:
        """Return a checksum by name of everything the model computes with.

        A layer that keeps its weight packed for oneDNN shows no weight: its entry, `NAME()`, is a checksum of its
        outputs for fixed inputs. Two ways of loading are equal when they leave equal fingerprints.
        """
        tensors = (*self._model.named_parameters(), *self._model.named_buffers())
        found = {name: _checksum(tensor) for name, tensor in tensors if tensor.numel()}
        for name, layer in self._model.named_modules():
            if width := self._find_packed_width(layer):
                inputs = torch.linspace(-1.0, 1.0, 3 * width).sin().view(3, width)  # no two columns alike
                outputs = layer.cpu_linear(inputs.to(layer.weight.dtype), layer.weight, None)
                found[f"{name}()"] = _checksum(outputs)
        return found

    def _find_packed_width(self, layer: Any) -> int | None:
        """Return the input width of a layer that keeps its weight packed; None for others, and for one not loaded."""
        if not hasattr(layer, "cpu_linear"):
            return None
        if layer in self._tied_heads:
            return int(layer.weight.shape[1])
        weights = [target for target in self._targets.get(layer, ()) if target.name == "weight"]
        return weights[0].view.shape[1] if weights else None


def _check_supported(target: TargetParameter) -> None:
    """Raise UnsupportedLoadError when a parameter is more than its copies, once vLLM has finished."""
    layer, now = target.layer, getattr(target.layer, target.name)
    where = f"{target.name} of a {type(layer).__name__}"
    if _method_name(layer) not in (None, PACKED, PACKED_AND_PLAIN):
        raise UnsupportedLoadError(f"{where}, which {_method_name(layer)} keeps in a way of its own")
    if now.numel():
        if StridedView.of(now, int(now.storage_offset())) != target.view:
            raise UnsupportedLoadError(f"{where}, which vLLM keeps in another shape")
    elif _method_name(layer) != PACKED or target.name != "weight" or not _is_covered(target):
        raise UnsupportedLoadError(f"{where}, which vLLM does not keep")


def _is_covered(target: TargetParameter) -> bool:
    """Whether the copies fill every element of the parameter."""
    shape, stride, offset = target.view
    filled = torch.zeros(shape, dtype=torch.bool)
    if stride != filled.stride() or offset:
        return False
    for step in target.steps:
        step.target_view.cut_from(filled).fill_(True)
    return bool(filled.all())


def _own_tensors(layer: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _method_name(layer: torch.nn.Module) -> str | None:
    """Return the class name of vLLM's `quant_method`, which says how a layer keeps its weight; None without one."""
    method = getattr(layer, "quant_method", None)
    return None if method is None else type(method).__name__


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  # on the meta device there is no address


def _checksum(tensor: Tensor) -> int:
    return checksum([tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()])
