"""The short way into a running vLLM model: each tensor straight to the parameter it ends in.

vLLM's own load asks for every tensor, layer by layer and name by name, where it goes; the answer never changes. Here
it is written down while vLLM loads once (`Tracing`), followed from then on (`Routes.load`), and trusted only after both
ways have left the same model behind (`fingerprint`).
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

# How vLLM keeps the weight of a layer on a CPU: packed for oneDNN, the plain one thrown away or kept beside it.
PACKED, KEPT = "UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"


class UnknownRouteError(Exception):
    """vLLM does more with a tensor than copy it: its own load alone can be trusted."""


class View(NamedTuple):
    """A part of a tensor, as `torch.as_strided` takes it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor, start: int = 0) -> View:
        """`start`: of the tensor it is a part of, in elements of the storage they share."""
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()) - start)

    def on(self, tensor: Tensor) -> Tensor:
        """This part of `tensor`."""
        return tensor.as_strided(self.shape, self.stride, self.offset + int(tensor.storage_offset()))


class Route(NamedTuple):
    """One copy: a part of the tensor called `source` into a part of a parameter."""

    source: str
    taken: View
    placed: View


@dataclass(slots=True, eq=False)
class Target:
    """A parameter of a layer and all that is copied into it."""

    layer: torch.nn.Module
    name: str
    view: View  # the whole parameter, as vLLM loads it
    dtype: torch.dtype
    routes: dict[Route, None] = field(default_factory=dict)  # a set that keeps its order

    def fill(self, parameter: Tensor, tensors: Mapping[str, Tensor]) -> None:
        for source, taken, placed in self.routes:
            placed.on(parameter).copy_(taken.on(tensors[source]))

    def alone(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The one tensor that is the whole parameter as it comes, if there is one."""
        if len(self.routes) > 1:
            return None
        ((source, taken, placed),) = self.routes
        tensor = tensors[source]
        as_it_is = placed == self.view and taken.stride == placed.stride and tensor.dtype == self.dtype
        return taken.on(tensor) if as_it_is else None


class _Sources:
    """Which of some tensors a view is a part of. They lie apart, or are tied: then either name does."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        held = {tensor.data_ptr(): (name, tensor) for name, tensor in tensors if tensor.numel()}
        self._starts = sorted(held)
        self._held = held

    def find(self, view: Tensor) -> tuple[str, View] | None:
        place = bisect_right(self._starts, view.data_ptr()) if not view.is_meta else 0
        if not place:
            return None
        name, tensor = self._held[self._starts[place - 1]]
        if view.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or view.dtype != tensor.dtype:
            return None
        part = View.of(view, int(tensor.storage_offset()))
        last = sum((size - 1) * step for size, step in zip(part.shape, part.stride, strict=True))
        return (name, part) if part.offset + last < tensor.numel() else None


class Tracing(TorchDispatchMode):
    """Within it every copy from one of `tensors` into a parameter of `model` is written down.

    Enter it between vLLM's `initialize_layerwise_reload` and `finalize_layerwise_reload`: the parameters are on the
    meta device then, and vLLM rehearses every copy on them to count what a layer still lacks.
    """

    def __init__(self, model: torch.nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sources = _Sources(tensors)
        held = [(layer, name, tensor) for layer in model.modules() for name, tensor in _own_tensors(layer)]
        self._held = [tensor for _, _, tensor in held]  # no other storage shall get the address of one of these
        self._targets = {
            _storage(tensor): Target(layer, name, View.of(tensor), tensor.dtype) for layer, name, tensor in held
        }
        self._strange: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if getattr(func, "_schema", None) is not None and func._schema.is_mutable and args:  # noqa: SLF001
            self._see(func, args)
        return out

    def _see(self, func: Any, args: Sequence[Any]) -> None:
        target = self._targets.get(_storage(args[0])) if isinstance(args[0], Tensor) else None
        if target is None:
            return
        source = args[1] if len(args) > 1 else None
        found = None
        if func is torch.ops.aten.copy_.default and isinstance(source, Tensor):
            if _storage(source) == _storage(args[0]):  # vLLM puts back what it has put there
                return
            found = self._sources.find(source) if source.shape == args[0].shape else None
        elif func is torch.ops.aten.fill_.Scalar and View.of(args[0]) != target.view:
            return  # padding, which stays as it is
        if found is None:
            self._strange.append(f"{func} into {target.name} of a {type(target.layer).__name__}")
        else:
            target.routes[Route(*found, View.of(args[0]))] = None

    def routes(self, model: torch.nn.Module) -> Routes:
        """What was written down, once vLLM has finished.

        Raises:
            UnknownRouteError: some parameter holds something else than copies of tensors.
        """
        if self._strange:
            raise UnknownRouteError(self._strange[0])
        return Routes(model, [target for target in self._targets.values() if target.routes])


class Routes:
    """The way of every tensor that vLLM loads, for models on a CPU."""

    def __init__(self, model: torch.nn.Module, targets: Sequence[Target]) -> None:
        self._targets: dict[torch.nn.Module, list[Target]] = {}
        for target in targets:
            _insist_on_copies(target)
            self._targets.setdefault(target.layer, []).append(target)
        self._model = model
        self._sources = {
            layer: {route.source for target in targets for route in target.routes}
            for layer, targets in self._targets.items()
        }
        # A head that shares the embedding's weight has its own packed copy of it, and nothing is ever copied into it.
        self._heads = [layer for layer in model.modules() if _method(layer) == KEPT and layer not in self._targets]
        self._scratch: dict[torch.dtype, Tensor] = {}

    def load(self, tensors: Mapping[str, Tensor], *, unchanged: Collection[str] = frozenset()) -> None:
        """Copy tensors to where they go and do what vLLM does with each layer after loading it.

        Layers stay as they are of which there is no tensor (see `rollout.weight_loader`), or none but those that are
        `unchanged` since the load before.
        """
        changed = tensors.keys() - unchanged
        loaded = [layer for layer, sources in self._sources.items() if not changed.isdisjoint(sources)]
        for layer in loaded:
            for target in self._targets[layer]:
                self._load(target, tensors)
            if (method := getattr(layer, "quant_method", None)) is not None:
                method.process_weights_after_loading(layer)
        if any(_method(layer) == KEPT for layer in loaded):
            for head in self._heads:
                head.quant_method.process_weights_after_loading(head)  # type: ignore[union-attr, operator]

    def fingerprint(self) -> dict[str, int]:
        """Checksums of all the model computes with: its tensors, and what comes out of layers that keep theirs packed.

        Two ways of loading have done the same if these are the same after either.
        """
        tensors = (*self._model.named_parameters(), *self._model.named_buffers())
        found = {name: _checksum(tensor) for name, tensor in tensors if tensor.numel()}
        for name, layer in self._model.named_modules():
            if width := self._width(layer):
                dtype = layer.weight.dtype
                asked = torch.linspace(-1.0, 1.0, 3 * width).sin().view(3, width).to(dtype)  # no two columns alike
                found[f"{name}()"] = _checksum(layer.cpu_linear(asked, layer.weight, None))
        return found

    def _width(self, layer: Any) -> int | None:
        """Of what a layer takes whose weight is kept packed, if we load it."""
        if not hasattr(layer, "cpu_linear"):
            return None
        shapes = [target.view.shape for target in self._targets.get(layer, ()) if target.name == "weight"]
        if layer in self._heads:
            shapes = [layer.weight.shape]
        return shapes[0][1] if shapes else None

    def _load(self, target: Target, tensors: Mapping[str, Tensor]) -> None:
        parameter = getattr(target.layer, target.name)
        if parameter.numel():
            target.fill(parameter.data, tensors)
            return
        whole = target.alone(tensors)
        if whole is None:
            whole = self._empty(target)
            target.fill(whole, tensors)
        # It is packed, which copies it, and thrown away before anybody can see whose memory it is.
        setattr(target.layer, target.name, torch.nn.Parameter(whole, requires_grad=False))

    def _empty(self, target: Target) -> Tensor:
        """Room for a weight, the same again for every layer: fresh memory would cost more than the copy."""
        size = int(torch.Size(target.view.shape).numel())
        scratch = self._scratch.get(target.dtype)
        if scratch is None or len(scratch) < size:
            scratch = self._scratch[target.dtype] = torch.empty(size, dtype=target.dtype)
        return scratch[:size].view(target.view.shape)


def _insist_on_copies(target: Target) -> None:
    """Raises UnknownRouteError when a layer's parameter is more than its copies, once vLLM has finished."""
    layer, now = target.layer, getattr(target.layer, target.name)
    where = f"{target.name} of a {type(layer).__name__}"
    if _method(layer) not in (None, PACKED, KEPT):
        raise UnknownRouteError(f"{where}, which {_method(layer)} keeps in a way of its own")
    if now.numel():
        if View.of(now, int(now.storage_offset())) != target.view:
            raise UnknownRouteError(f"{where}, which vLLM keeps in another shape")
    elif _method(layer) != PACKED or target.name != "weight" or not _covers(target):
        raise UnknownRouteError(f"{where}, which vLLM does not keep")


def _covers(target: Target) -> bool:
    """All of a parameter is copied into it."""
    shape, stride, offset = target.view
    seen = torch.zeros(shape, dtype=torch.bool)
    if stride != seen.stride() or offset:
        return False
    for route in target.routes:
        route.placed.on(seen).fill_(True)
    return bool(seen.all())


def _own_tensors(layer: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _method(layer: torch.nn.Module) -> str | None:
    method = getattr(layer, "quant_method", None)
    return None if method is None else type(method).__name__


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  # on the meta device there is no address


def _checksum(tensor: Tensor) -> int:
    return checksum([tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()])
