"""The learner's side of a test: the same model in transformers, its prompts, and its weights as a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config.schema import DataConfig, ModelConfig
from common.data.image import store_picture
from common.models.families import family_of
from common.models.processor import banned_token_ids, eos_token_ids, load_model_config, load_processor
from common.models.prompts import PromptEncoder
from common.types import Example, Group, Prompt, Sampling, ScoredGroup, WeightBucket, WeightManifest
from learner.model.head import ScoringSpec
from learner.model.load import freeze_vision_tower
from learner.trainer.weights import WeightSource
from tests.helpers.oracle import row_logprobs

SAMPLED = Sampling(n=4, temperature=1.0, top_p=1.0, top_k=0, max_tokens=6)


class Sender:
    """Puts weights into the object store, those that no step changes once."""

    def __init__(self, source: WeightSource) -> None:
        self._source, self._fixed = source, dict[int, WeightBucket]()

    def publish(self, version: int) -> WeightManifest:
        import ray

        buckets = []
        for number, batch in enumerate(self._source.batches):
            bucket = self._fixed.get(number)
            if bucket is None:
                table, arrays = self._source.pack(number, rank=0)
                assert table is not None
                bucket = replace(table, payload=ray.put(arrays))
            if batch.kind != "changing":
                self._fixed[number] = bucket
            buckets.append(bucket)
        return WeightManifest(version=version, buckets=tuple(buckets), vision_unchanged=self._source.towers_fixed)


class Policy:
    """Naive, and plainly right."""

    def __init__(self, folder: Path, *, max_prompt_tokens: int = 160) -> None:
        from transformers import AutoModelForImageTextToText

        config = ModelConfig(path=str(folder), dtype="float32")
        hf_config, processor = load_model_config(config), load_processor(config)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, trust_remote_code=False, dtype=torch.float32
        )
        self._initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        data = DataConfig(path="unused", max_prompt_tokens=max_prompt_tokens)
        self.encoder = PromptEncoder(processor, data, family=family_of(hf_config))
        self._leaving = PromptEncoder(processor, data, family=family_of(hf_config), reads=False)
        self.banned = banned_token_ids(hf_config, processor.tokenizer, eos_token_ids(config))

    def reset(self) -> None:
        """Back to the weights it was made with."""
        self.model.load_state_dict(self._initial)

    def prompt(self, number: int, *, size: tuple[int, int] | None = (56, 56), question: str = "one or two?") -> Prompt:
        """A random image of (height, width), or none, and a question."""
        image = None if size is None else np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        return self.encoder.encode(Example(id=f"test/{number}", problem=question, image=image, label="one", columns={}))

    def prompt_of_file(self, number: int, data: bytes, *, reads: bool = True) -> Prompt:
        """A picture of 224 x 168 pixels in a file; where it is not read here, engine or rank must."""
        picture = store_picture(data, resize=None, size=(224, 168))
        example = Example(id=f"test/{number}", problem="one or two?", image=picture, label="one", columns={})
        return (self.encoder if reads else self._leaving).encode(example)

    def push(self, fleet: Any, version: int, *, vision_unchanged: bool = False) -> WeightManifest:
        """Publish the weights as they are and load them into every engine."""
        self.model.requires_grad_(True)
        if vision_unchanged:
            freeze_vision_tower(self.model)
        manifest = self.sender().publish(version)
        fleet.publish(manifest)
        return manifest

    def sender(self) -> Sender:
        """Publishes the weights as they are, those again that require a gradient."""
        return Sender(WeightSource(self.model, gathered=lambda tensors: nullcontext(), bucket_bytes=1 << 18))

    def shake(self, seed: int, only: Callable[[str], bool] = lambda name: True) -> None:
        """Move every parameter that `only` names, so that anything left behind shows."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if only(name):
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)

    def copy_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights as they are now."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def gap_by_version(
        self,
        prompts: Iterable[Prompt],
        groups: Sequence[Group],
        sampling: Sampling,
        weights: Mapping[int, Mapping[str, torch.Tensor]],
    ) -> float:
        """Largest |engine - naive| log-prob, each token's under the weights that sampled it."""
        by_id, kept = {prompt.id: prompt for prompt in prompts}, self.copy_weights()
        spec = ScoringSpec(
            temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, banned=self.banned
        )
        gaps = []
        for version, state in weights.items():
            self.model.load_state_dict(state)
            for group in groups:
                zeros = (0.0,) * len(group.completions)
                scored = ScoredGroup(
                    prompt=by_id[group.prompt_id], group=group, rewards_by_name={"none": zeros}, rewards=zeros
                )
                for index, completion in enumerate(group.completions):
                    with torch.no_grad():
                        mine, _, _ = row_logprobs(self.model, self.model, scored, index, spec)
                    held = [span.version for span in completion.spans for _ in range(span.tokens)]
                    own = torch.tensor([one == version for one in held or [group.weights_version] * len(mine)])
                    gaps.append((mine - torch.tensor(completion.logprobs)).abs()[own])
        self.model.load_state_dict(kept)
        found = torch.cat(gaps)
        assert len(found) == sum(len(one.token_ids) for group in groups for one in group.completions)
        return float(found.max())

    def gap(self, prompts: Iterable[Prompt], groups: Sequence[Group], sampling: Sampling) -> float:
        """Largest |engine - naive| log-prob over all sampled tokens."""
        by_id = {prompt.id: prompt for prompt in prompts}
        spec = ScoringSpec(
            temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, banned=self.banned
        )
        gaps = []
        for group in groups:
            zeros = (0.0,) * len(group.completions)
            scored = ScoredGroup(
                prompt=by_id[group.prompt_id], group=group, rewards_by_name={"none": zeros}, rewards=zeros
            )
            for index, completion in enumerate(group.completions):
                with torch.no_grad():
                    mine, _, _ = row_logprobs(self.model, self.model, scored, index, spec)
                gaps.append(float((mine - torch.tensor(completion.logprobs)).abs().max()))
        return max(gaps)
