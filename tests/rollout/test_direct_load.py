"""Direct load on a model that loads as vLLM's do, fused, padded, tied and packed; and what must not be trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rollout.direct_load import CopyRecorder, UnsupportedLoadError

SIZE = 4


class UnquantizedLinearMethod:
    """Packs the weight and throws it away, as vLLM's does on a CPU."""

    def process_weights_after_loading(self, layer: Any) -> None:
        packed = layer.weight.detach().clone()
        layer.cpu_linear = lambda x, weight, bias: x @ packed.T
        layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)


class UnquantizedEmbeddingMethod:
    """Packs a copy of the weight."""

    def process_weights_after_loading(self, layer: Any) -> None:
        packed = layer.weight.detach().clone()
        layer.cpu_linear = lambda x, weight, bias: x @ packed.T


class OtherMethod(UnquantizedEmbeddingMethod):
    """Nobody knows what it does."""


class Layer(torch.nn.Module):
    def __init__(self, rows: int, method: Any = None) -> None:
        super().__init__()
        self.rows, self.quant_method = rows, method
        self.weight = torch.nn.Parameter(torch.zeros(rows, SIZE), requires_grad=False)


class Model(torch.nn.Module):
    """`load` puts a parameter on the meta device, makes every copy there once, and then loads, as vLLM does."""

    def __init__(self, method: Any = None) -> None:
        super().__init__()
        self.fused = Layer(3 * SIZE, method or UnquantizedLinearMethod())
        self.plain = Layer(SIZE, UnquantizedLinearMethod())
        self.norm = Layer(1)
        self.embed = Layer(8, UnquantizedEmbeddingMethod())
        self.head = Layer(8, UnquantizedEmbeddingMethod())
        self.head.weight = self.embed.weight
        self.twice = False

    def layers(self) -> dict[str, Layer]:
        return {"fused": self.fused, "plain": self.plain, "norm": self.norm, "embed": self.embed}

    def copies(self, weights: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        for place, name in enumerate("qkv"):
            weights["fused"].narrow(0, place * SIZE, SIZE).copy_(tensors[name])
        weights["plain"].copy_(tensors["plain"] * 2 if self.twice else tensors["plain"].T)
        weights["norm"][0].copy_(tensors["norm"])
        weights["embed"][:6].copy_(tensors["embed"])
        weights["embed"][6:].fill_(0)

    def load_and_record(self, tensors: dict[str, Tensor]) -> CopyRecorder:
        kept = {name: layer.weight for name, layer in self.layers().items()}
        for layer in self.layers().values():
            layer.weight = torch.nn.Parameter(torch.empty(layer.rows, SIZE, device="meta"), requires_grad=False)
        recorder = CopyRecorder(self, tensors.items())
        with recorder:
            self.copies({name: layer.weight for name, layer in self.layers().items()}, tensors)
            for name, layer in self.layers().items():
                live = kept[name].numel() > 0
                layer.weight = kept[name] if live else torch.nn.Parameter(torch.empty(layer.rows, SIZE))
            self.copies({name: layer.weight.data for name, layer in self.layers().items()}, tensors)
            self.process()
        return recorder

    def process(self) -> None:
        for layer in (*self.layers().values(), self.head):
            if layer.quant_method:
                layer.quant_method.process_weights_after_loading(layer)

    def computes(self) -> dict[str, Tensor]:
        one = torch.eye(SIZE)
        layers = {**self.layers(), "head": self.head}
        return {
            name: layer.cpu_linear(one, None, None) if layer.quant_method else layer.weight.clone()  # type: ignore[operator]
            for name, layer in layers.items()
        }


def tensors(seed: int) -> dict[str, Tensor]:
    """In one memory, as a bucket's are."""
    shapes = {"q": (SIZE, SIZE), "k": (SIZE, SIZE), "v": (SIZE, SIZE), "plain": (SIZE, SIZE), "norm": (SIZE,)}
    sizes = {name: torch.Size(shape) for name, shape in {**shapes, "embed": (6, SIZE)}.items()}
    flat = torch.randn(sum(size.numel() for size in sizes.values()), generator=torch.Generator().manual_seed(seed))
    parts = flat.split([size.numel() for size in sizes.values()])
    return {name: part.view(size) for part, (name, size) in zip(parts, sizes.items(), strict=True)}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def build_and_record(**settings: Any) -> tuple[Model, CopyRecorder]:
    model = Model(**settings)
    model.process()
    return model, model.load_and_record(tensors(0))


def test_a_direct_load_leaves_the_model_that_a_recorded_one_leaves() -> None:
    model, recorder = build_and_record()
    loader = recorder.make_loader(model)
    loader.load(tensors(1))
    found = model.computes()
    model.load_and_record(tensors(1))
    assert same(found, model.computes())
    model.load_and_record(tensors(2))
    assert not same(found, model.computes()), "nothing was loaded: this test could not fail"


def test_the_senders_memory_is_not_kept() -> None:
    model, recorder = build_and_record()
    loader, sent = recorder.make_loader(model), tensors(1)
    loader.load(sent)
    before = model.computes()
    for tensor in sent.values():
        tensor.zero_()
    assert same(model.computes(), before)


def test_a_layer_of_which_nothing_comes_stays_as_it_is() -> None:
    model, recorder = build_and_record()
    before = model.computes()
    rest = {name: tensor for name, tensor in tensors(1).items() if name not in "qkv"}
    recorder.make_loader(model).load(rest)
    after = model.computes()
    assert torch.equal(after["fused"], before["fused"])
    assert not torch.equal(after["norm"], before["norm"])


def test_only_layers_that_change_are_loaded_again() -> None:
    model, recorder = build_and_record()
    loader, sent = recorder.make_loader(model), tensors(1)
    loader.load(sent)
    before, packed = model.computes(), model.plain.cpu_linear
    sent["q"].add_(1.0)
    loader.load(sent, unchanged=sent.keys() - {"q"})
    after = model.computes()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["fused"]
    assert model.plain.cpu_linear is packed
    sent["embed"].add_(1.0)
    loader.load(sent, unchanged=sent.keys() - {"embed"})
    assert torch.equal(model.computes()["head"], model.computes()["embed"])
    assert not torch.equal(model.computes()["head"], after["head"])


def test_half_of_a_fused_weight_is_refused() -> None:
    model, recorder = build_and_record()
    half = {name: tensor for name, tensor in tensors(1).items() if name != "k"}
    with pytest.raises(KeyError, match="k"):
        recorder.make_loader(model).load(half)


@pytest.mark.parametrize("what", ["embed", "norm", "plain", "fused"])
def test_a_fingerprint_sees_every_layer(what: str) -> None:
    model, recorder = build_and_record()
    loader = recorder.make_loader(model)
    loader.load(tensors(1))
    before = loader.fingerprint()
    assert before == loader.fingerprint()
    changed = tensors(1)
    changed["v" if what == "fused" else what].view(-1)[1] += 1e-3
    loader.load(changed)
    changes = [name for name, found in loader.fingerprint().items() if found != before[name]]
    assert any(name.startswith(what) for name in changes), changes


def test_a_tied_head_is_packed_again() -> None:
    model, recorder = build_and_record()
    recorder.make_loader(model).load(tensors(1))
    assert torch.equal(model.head.cpu_linear(torch.eye(SIZE), None, None).T[:6], tensors(1)["embed"])  # type: ignore[operator]


def test_what_is_no_copy_of_a_tensor_is_not_trusted() -> None:
    model = Model()
    model.twice = True
    model.process()
    with pytest.raises(UnsupportedLoadError, match="weight of a Layer"):
        model.load_and_record(tensors(0)).make_loader(model)


def test_a_method_nobody_knows_is_not_trusted() -> None:
    model, recorder = build_and_record(method=OtherMethod())
    with pytest.raises(UnsupportedLoadError, match="OtherMethod"):
        recorder.make_loader(model)


def test_a_fill_of_a_whole_parameter_is_not_padding() -> None:
    model = Model()
    model.process()
    recorder = CopyRecorder(model, tensors(0).items())
    with recorder:
        model.norm.weight.data.fill_(3.0)
    with pytest.raises(UnsupportedLoadError, match="fill_"):
        recorder.make_loader(model)
