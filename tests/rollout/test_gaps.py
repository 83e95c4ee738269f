"""The limits of the log-prob gap in bfloat16: silent on a real engine that is right, a stop on one that is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from common.config.schema import Config
from common.errors import EngineError
from common.types import GroupGap, Prompt, Sampling, ScoredGroup
from learner.driver.parity_probe import check_gaps
from learner.model.attention import install
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.pack import build_pack
from rollout.requests import request
from rollout.spec import engine_spec
from tests.helpers.policy import Policy
from tests.helpers.turns import Turn, Turns, make_config

pytestmark = pytest.mark.engine
PLAIN = Sampling(n=4, temperature=1.0, top_p=1.0, top_k=0, max_tokens=16)
CONFIG = Config.model_validate({"model": {"dtype": "bfloat16"}})


class Pair:
    """A real engine and the learner's model, both in bfloat16."""

    def __init__(self, folder: Path, actor: Any) -> None:
        config = make_config(folder)
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
        self.policy = Policy(folder, max_prompt_tokens=400)
        self.policy.model.to(torch.bfloat16)
        install(self.policy.model, "auto")
        self.engine = Turn(actor, engine_spec(config, model_path=str(folder), banned=self.policy.banned))
        self.prompts = [self.policy.prompt(number) for number in range(8)]
        self.version = -1

    def push(self) -> None:
        self.version += 1
        self.policy.push(self.engine, self.version)

    def check(self, sampled: Sampling = PLAIN, scored: Sampling = PLAIN) -> tuple[float, float]:
        """Hold a step of eight groups against the limits; return its largest and its mean gap."""
        requests = [request(prompt, sampled, seed=number) for number, prompt in enumerate(self.prompts)]
        groups = [_score(self.prompts, group) for group in self.engine.generate(requests, self.version)]
        gaps = dict(self._measure(groups, scored))
        check_gaps(CONFIG, 0, groups, gaps)
        tokens = sum(gap.tokens for gap in gaps.values())
        return max(gap.largest for gap in gaps.values()), sum(gap.total for gap in gaps.values()) / tokens

    def _measure(self, groups: Sequence[ScoredGroup], scored: Sampling) -> Iterator[tuple[str, GroupGap]]:
        """Yield the gaps of each group by prompt id, from the learner's own scores."""
        spec = ScoringSpec(
            temperature=scored.temperature, top_k=scored.top_k, top_p=scored.top_p, banned=self.policy.banned
        )
        for group in groups:
            pack = build_pack([group], self.policy.model, banned=self.policy.banned)
            with torch.no_grad():
                gap = (packed_logprobs(self.policy.model, pack, spec).logp - pack.engine_logp).abs()
            yield group.prompt.id, GroupGap(total=gap.sum().item(), largest=gap.max().item(), tokens=len(gap))


def _score(prompts: Sequence[Prompt], group: Any) -> ScoredGroup:
    (prompt,) = [prompt for prompt in prompts if prompt.id == group.prompt_id]
    zeros = (0.0,) * len(group.completions)
    return ScoredGroup(prompt=prompt, group=group, rewards_by_name={"none": zeros}, rewards=zeros)


@pytest.fixture(scope="module")
def pair(ray_session: None, random_qwen2vl: Path) -> Iterator[Pair]:
    spec = engine_spec(make_config(random_qwen2vl), model_path=str(random_qwen2vl), banned=())
    actor: Any = ray.remote(Turns).options(num_cpus=0, runtime_env={"env_vars": spec.environment()})
    handle = actor.remote()
    yield Pair(random_qwen2vl, handle)
    ray.kill(handle)


@pytest.mark.parametrize(
    "sampling",
    [
        PLAIN,
        dataclasses.replace(PLAIN, temperature=0.01),
        dataclasses.replace(PLAIN, temperature=0.3),
        dataclasses.replace(PLAIN, temperature=1.5),
        dataclasses.replace(PLAIN, top_k=1),  # of two equal logits each side keeps its own: a gap of ln 2
        dataclasses.replace(PLAIN, top_k=5),
        dataclasses.replace(PLAIN, top_p=0.7),
        dataclasses.replace(PLAIN, temperature=0.7, top_k=20, top_p=0.9),
    ],
    ids=str,
)
def test_rounding_stops_nothing(pair: Pair, sampling: Sampling) -> None:
    pair.push()
    largest, mean = pair.check(sampling, sampling)
    print(f"largest {largest:.3g}, mean {mean:.3g}")
    assert 0 < mean < 0.1


@pytest.mark.parametrize(
    ("sampled", "scored"),
    [
        ({"temperature": 1.0}, {"temperature": 0.7}),
        ({"temperature": 0.7}, {"temperature": 1.0}),
        ({"top_k": 5}, {"top_k": 0}),
        ({"top_p": 0.6}, {"top_p": 1.0}),
    ],
    ids=str,
)
def test_other_settings_stop_the_run(pair: Pair, sampled: dict[str, Any], scored: dict[str, Any]) -> None:
    pair.push()
    with pytest.raises(EngineError, match="engine and learner disagree"):
        pair.check(dataclasses.replace(PLAIN, **sampled), dataclasses.replace(PLAIN, **scored))


@pytest.mark.parametrize(
    "tensor", ["embed_tokens", "layers.0.self_attn.v_proj.weight", "visual", "model.language_model.norm"]
)
def test_stale_and_damaged_weights_stop_the_run(pair: Pair, tensor: str) -> None:
    """All of the weights of an engine may be old, or one tensor."""
    pair.push()
    before = {name: value.clone() for name, value in pair.policy.model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in pair.policy.model.named_parameters():
            if tensor in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    with pytest.raises(EngineError, match="engine and learner disagree"):
        pair.check()
    pair.policy.model.load_state_dict(before)
