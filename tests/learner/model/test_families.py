"""Law 2 for every family: packed is naive, in log-prob and gradient, over mixed prompts, pictures and completions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.config.schema import DataConfig, ModelConfig
from common.models.families import FAMILIES, family_of
from common.models.processor import banned_token_ids, eos_token_ids, load_model_config, load_processor
from common.models.prompts import PromptEncoder
from common.types import Completion, Example, Group, ScoredGroup
from learner.model.attention import find_way, install
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.pack import Pack, build_pack
from learner.model.rows import build_rows
from tests.helpers import oracle
from tests.helpers.models import QUESTION, Architecture, build_random_model

Size = tuple[int, int] | None
SIZES: dict[str, list[Size]] = {  # Aria's processor makes 980 x 980 of each
    "aria": [(56, 56), None],
    "mistral3": [(56, 56), (90, 40), None, (112, 112)],
}
MIXED: list[Size] = [(56, 56), (112, 60), None, (90, 200)]


class Learner:
    """A random model and its prompts."""

    def __init__(self, folder: Path) -> None:
        import transformers

        path = ModelConfig(path=str(folder), dtype="float32")
        config, processor = load_model_config(path), load_processor(path)
        self.family = config.model_type
        self.model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, trust_remote_code=False, dtype=torch.float32
        ).train()
        install(self.model, "auto")
        self.spec = ScoringSpec(
            temperature=0.9, banned=banned_token_ids(config, processor.tokenizer, eos_token_ids(path))
        )
        self._allowed = sorted(set(range(len(processor.tokenizer))) - set(self.spec.banned))
        self._encoder = PromptEncoder(processor, DataConfig(), family=family_of(config))

    def group(self, seed: int, size: Size, lengths: Sequence[int]) -> ScoredGroup:
        draw = np.random.default_rng(seed)
        image = None if size is None else draw.integers(0, 255, (*size, 3), dtype=np.uint8)
        question = QUESTION + " or three?" * seed
        prompt = self._encoder.encode(
            Example(id=f"test/{seed}", problem=question, image=image, label="one", columns={})
        )
        completions = tuple(
            Completion(
                token_ids=tuple(draw.choice(self._allowed, length).tolist()),
                logprobs=(-4.0,) * length,
                text="",
                finish_reason="stop",
            )
            for length in lengths
        )
        rewards = tuple(draw.normal(size=len(lengths)).tolist())
        group = Group(
            prompt_id=prompt.id,
            completions=completions,
            seed=seed,
            origin="sampled",
            engine_id="test",
            weights_version=0,
        )
        return ScoredGroup(prompt=prompt, group=group, rewards_by_name={"test": rewards}, rewards=rewards)

    def groups(self) -> list[ScoredGroup]:
        lengths = [(1, 4, 7), (3, 1), (2, 20), (5, 2, 2)]
        sizes = SIZES.get(self.family, MIXED)
        return [self.group(seed, size, own) for seed, (size, own) in enumerate(zip(sizes, lengths, strict=False))]

    def packed(self, groups: Sequence[ScoredGroup]) -> Tensor:
        return self.scores(build_pack(groups, self.model, banned=self.spec.banned))

    def scores(self, pack: Pack) -> Tensor:
        return packed_logprobs(self.model, pack, self.spec).logp

    def naive(self, groups: Sequence[ScoredGroup]) -> Tensor:
        """Row by row, by the ordinary forward."""
        rows = []
        for scored in groups:
            for index, completion in enumerate(scored.group.completions):
                logp = oracle.row_logits(self.model, scored, index, self.spec).log_softmax(-1)
                rows.append(logp.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0])
        return torch.cat(rows)

    def gradient(self, logp: Tensor) -> Tensor:
        """Of a sum with a weight of its own for every token."""
        self.model.zero_grad()
        weights = torch.linspace(-1, 1, len(logp))
        (logp * weights).sum().backward()
        return oracle.gradient(self.model)


@pytest.fixture(scope="module", params=get_args(Architecture))
def learner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return Learner(build_random_model(tmp_path_factory.mktemp("model"), seed=1, architecture=request.param))


def test_law_2_packed_is_naive(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = learner.groups()
    assert find_way(learner.model) == ("sdpa" if learner.family == "gemma3" else "sparse")  # it has sliding layers
    found, wanted = learner.packed(groups), learner.naive(groups)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    gradient, wanted_gradient = learner.gradient(found), learner.gradient(wanted)
    assert oracle.relative_error(gradient, wanted_gradient) < 1e-5
    learner.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert torch.equal(learner.gradient(learner.packed(groups)), gradient)
    learner.model.gradient_checkpointing_disable()
    monkeypatch.setattr(learner.model.config.get_text_config(), "_attn_implementation", "sdpa")  # dense masks
    dense = learner.packed(groups)
    torch.testing.assert_close(dense, wanted, rtol=0, atol=1e-5)
    assert oracle.relative_error(learner.gradient(dense), wanted_gradient) < 1e-5


def test_the_plain_way_is_naive_too(learner: Learner) -> None:
    """Rows of their own, as a family that is not in the table goes."""
    if family_of(learner.model.config).tile_axis:  # these want the tiles of each row apart, which no other family does
        return
    groups = learner.groups()
    found = learner.scores(build_rows(groups, learner.model, banned=learner.spec.banned))
    wanted = learner.naive(groups)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert oracle.relative_error(learner.gradient(found), learner.gradient(wanted)) < 1e-5
    text = [learner.group(seed, None, (2, 3)) for seed in range(2)]
    rows = build_rows(text, learner.model, banned=learner.spec.banned)
    assert rows.images["pixel_values"].numel()
    torch.testing.assert_close(learner.scores(rows), learner.naive(text), rtol=0, atol=1e-5)


def test_a_pack_of_text_alone_runs_the_tower_for_nothing(learner: Learner) -> None:
    groups = [learner.group(seed, None, (2, 3)) for seed in range(2)]
    found = learner.gradient(learner.packed(groups))
    assert oracle.relative_error(found, learner.gradient(learner.naive(groups))) < 1e-5
    learner.gradient(learner.packed(groups))
    with_gradient = [name for name, parameter in learner.model.named_parameters() if parameter.grad is not None]
    assert any("vis" in name for name in with_gradient)


def test_pictures_belong_to_their_prompts(learner: Learner) -> None:
    """Two of a size swapped would pass every count."""
    first, second = (learner.group(seed, (56, 56), (4, 2)) for seed in (0, 1))
    together = learner.packed([first, second]).detach()
    alone = torch.cat([learner.packed([one]).detach() for one in (first, second)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    swapped = [
        replace(one, prompt=replace(one.prompt, images=other.prompt.images))
        for one, other in ((first, second), (second, first))
    ]
    assert (learner.packed(swapped).detach() - together).abs().max() > 1e-3


def test_every_family_of_the_table_is_here() -> None:
    assert {*FAMILIES, "llava"} == set(get_args(Architecture))


# What `torch.use_deterministic_algorithms` says will raise on a GPU, and as what of torch.ops.aten it would run.
RAISING = {
    "nn.AvgPool3d": "avg_pool3d_backward",
    "nn.AdaptiveAvgPool2d": "_adaptive_avg_pool2d_backward",
    "nn.AdaptiveAvgPool3d": "_adaptive_avg_pool3d_backward",
    "nn.AdaptiveMaxPool2d": "adaptive_max_pool2d_backward",
    "nn.FractionalMaxPool2d": "fractional_max_pool2d_backward",
    "nn.FractionalMaxPool3d": "fractional_max_pool3d_backward",
    "nn.MaxUnpool1d": "max_unpool2d",
    "nn.MaxUnpool2d": "max_unpool2d",
    "nn.MaxUnpool3d": "max_unpool3d",
    "nn.functional.interpolate": "upsample_",
    "nn.ReflectionPad1d": "reflection_pad1d_backward",
    "nn.ReflectionPad2d": "reflection_pad2d_backward",
    "nn.ReflectionPad3d": "reflection_pad3d_backward",
    "nn.NLLLoss": "nll_loss",
    "nn.CTCLoss": "_ctc_loss",
    "nn.EmbeddingBag": "_embedding_bag",
    "Tensor.put_": "put_",
    "histc": "histc",
    "bincount": "bincount",
    "median": "median",
    "nn.functional.grid_sample": "grid_sampler",
    "cumsum": "cumsum",
    "Tensor.resize_": "resize_",
    "Tensor.scatter_reduce": "scatter_reduce",
}
# transformers counts the tokens of each expert in floats on a CPU, and in integers on a GPU, where those are refused.
IN_FLOATS_ON_A_CPU = {"aria": {"histc", "cumsum"}}


def test_law_5_a_step_on_a_gpu_uses_nothing_that_torch_cannot_repeat(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the operations of the same step here, top-p as a GPU takes it, in an enumeration of torch's own."""
    refused = str(torch.use_deterministic_algorithms.__doc__).rpartition("-nondeterministic operations will throw")[2]
    documented = re.findall(r":(?:class|func):`torch\.([\w.]+)`", refused.partition("In addition")[0])
    assert documented
    assert set(documented) <= RAISING.keys(), "torch refuses more"

    monkeypatch.setattr(Tensor, "is_cuda", True)
    used = Operations()
    with used:
        spec = replace(learner.spec, top_k=30, top_p=0.9)
        pack = build_pack(learner.groups(), learner.model, banned=spec.banned)
        learner.gradient(packed_logprobs(learner.model, pack, spec).logp)
    found = {name for name in used.names if any(name.startswith(one) for one in RAISING.values())}
    assert found == IN_FLOATS_ON_A_CPU.get(learner.family, set())


class Operations(TorchDispatchMode):
    """Records which operations run inside it, but for sums of integers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (args and isinstance(args[0], Tensor) and not args[0].is_floating_point()):
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})
