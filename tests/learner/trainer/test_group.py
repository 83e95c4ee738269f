"""Real DeepSpeed ranks in Ray against one plain torch twin: laws 2 and 3, faults 7 and 12."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from common.checksum import checksum
from common.config.schema import CheckpointConfig, Config, LoraConfig
from common.errors import CheckpointError
from common.storage.output import WriteReport, describe_folder
from common.types import ImageFeatures, ScoredGroup, StepResult, WeightManifest
from learner.driver.vision_cache import VisionCache
from learner.model.head import ScoringSpec
from learner.model.load import load_model
from learner.model.lora import add_adapters
from learner.model.vision_features import compute_features
from learner.trainer.group import LearnerGroup
from learner.trainer.schedule import learning_rate
from learner.trainer.weights import WeightSource
from tests.helpers import oracle, tiny

pytestmark = pytest.mark.engine

LR, BETA, STEPS, CLIP = 1e-3, 0.1, 6, 1.0
SPEC = ScoringSpec(temperature=0.9, top_k=40, top_p=0.95, banned=tiny.BANNED)
LORA = LoraConfig(rank=4, alpha=8)
Weights = dict[str, Tensor]


def settings(model: Path, *, ranks: int, stage: int, **model_keys: Any) -> Config:
    return Config.model_validate(
        {
            "steps": STEPS,
            "model": {"path": str(model), "dtype": "float32"} | model_keys,
            "rollout": {
                "prompts_per_step": 4,
                "gpus_per_engine": 0,
                "temperature": SPEC.temperature,
                "top_k": SPEC.top_k,
                "top_p": SPEC.top_p,
            },
            "learner": {
                "ranks": ranks,
                "zero_stage": stage,
                "lr": LR,
                "beta": BETA,
                "grad_clip": CLIP,
                "tokens_per_pack": 30,  # one group a pack: three on one rank, two and an idle one on the other
                "logits_mb": 0.005,  # thirteen tokens: several blocks a pack
                "cpus_per_rank": 0.1,
                "gpus_per_rank": 0,
            },
            "cluster": {"device": "cpu"},
            "weights": {"bucket_mb": 1},
        }
    )


@contextmanager
def opened(config: Config, *, tower_runs: bool = True) -> Iterator[LearnerGroup]:
    group = LearnerGroup(
        config, model_path=config.model.path, banned=tiny.BANNED, steps=config.steps, tower_runs=tower_runs
    )
    try:
        group.ready(180)
        yield group
    finally:
        group.close()


def batch(step: int) -> list[ScoredGroup]:
    """Five groups sampled for a step, other rewards each step: two ranks hold three and two."""
    draw = np.random.default_rng(step)
    groups = []
    for scored in tiny.ragged():
        rewards = tuple(draw.normal(size=len(scored.rewards)).tolist())
        own = replace(scored.group, weights_version=step)
        groups.append(replace(scored, group=own, rewards_by_name={"test": rewards}, rewards=rewards))
    return groups


def unpack(manifest: WeightManifest) -> Weights:
    """What an engine would load: checked, and copied so that it outlives the manifest."""
    import ray

    weights = {}
    for bucket in manifest.buckets:
        arrays = ray.get(bucket.payload, timeout=60)
        assert checksum(arrays) == bucket.xxh3
        for entry in bucket.entries:
            raw = torch.tensor(arrays[entry.index])[entry.start :].view(getattr(torch, entry.dtype))
            weights[entry.name] = raw[: math.prod(entry.shape)].view(entry.shape)
    return weights


@dataclass(frozen=True)
class Trained:
    """Five steps, saved after the third."""

    results: list[StepResult]
    logprobs: list[list[tuple[float, ...]]]  # before the first step
    weights: dict[int, Weights]  # by version
    saved: Path
    estimated: int  # bytes of what was saved


def train(config: Config, folder: Path) -> Trained:
    with opened(config) as group:
        logprobs = group.logprobs(batch(0))
        results = [group.step(batch(step), at=step) for step in range(3)]
        weights = {3: unpack(group.publish(3))}
        refuse_full_disk(group, folder, config)
        check_reports(group.save(folder), folder, config)
        results += [group.step(batch(step), at=step) for step in (3, 4)]
        weights[5] = unpack(group.publish(5))
        return Trained(results, logprobs, weights, folder, group.checkpoint_bytes())


def check_reports(reports: Sequence[WriteReport], folder: Path, config: Config) -> None:
    """Every file of the folder is in the report of one rank, with its size and its hash; each rank has some."""
    files = [file for report in reports for file in report.files]
    assert sorted(files, key=lambda file: file.name) == list(describe_folder(folder))
    assert [report.by for report in reports if report.files] == [f"rank {n}" for n in range(config.learner.ranks)]


def refuse_full_disk(group: LearnerGroup, folder: Path, config: Config) -> None:
    """One rank's disk is full: an error that names it, no rank left in a barrier, and training goes on."""
    rank = config.learner.ranks - 1 if config.learner.zero_stage else 0  # without ZeRO only the first rank writes
    name = (
        f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" if config.learner.zero_stage else "mp_rank_00_model_states.pt"
    )
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / name).symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=rf"rank {rank} on .*No space left.*{name}"):
        group.save(folder)
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Twin:
    """One process of plain torch, naive rows, on all groups."""

    norms: list[float]
    weights: Weights  # after three steps
    logprobs: list[list[Tensor]]  # before the first


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def twin() -> Twin:
    policy = tiny.model()
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0)
    with torch.no_grad():
        logprobs = [
            [oracle.row_logprobs(policy, reference, g, index, SPEC)[0] for index in range(len(g.rewards))]
            for g in batch(0)
        ]
    norms = []
    for step in range(3):
        optimizer.param_groups[0]["lr"] = learning_rate(step, peak=LR, steps=STEPS, warmup_steps=0, schedule="linear")
        optimizer.zero_grad()
        torch.autograd.backward(oracle.loss(policy, reference, batch(step), SPEC, beta=BETA))
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)))
        optimizer.step()
    return Twin(norms, {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}, logprobs)


STAGES = pytest.mark.parametrize("trained", [0, 1, 2, 3], indirect=True)
PARTITIONED = pytest.mark.parametrize("trained", [2, 3], indirect=True)  # what a rank holds differs from the others


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, ray_session: None, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Trained]:
    config = settings(model_path, ranks=2, stage=request.param)
    return request.param, train(config, tmp_path_factory.mktemp(f"stage{request.param}") / "checkpoint")


def assert_close(found: Weights, wanted: Weights, *, share: float = 0.05) -> None:
    """Adam turns rounding into whole steps wherever a gradient is about zero: a share of a step is the tolerance."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        off = (found[name] - tensor).abs().max().item()
        assert off <= share * LR, f"{name}: {off / LR:.3f} of a step"


def assert_equal(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@STAGES
def test_two_ranks_are_one_twin(trained: tuple[int, Trained], twin: Twin) -> None:
    """Laws 2 and 3, in norms and weights: at ratio 1 the loss value proves nothing."""
    assert_is_twin(trained[1], twin)


def test_one_rank_that_averages_nothing_is_the_twin(
    ray_session: None, model_path: Path, twin: Twin, tmp_path: Path
) -> None:
    assert_is_twin(train(settings(model_path, ranks=1, stage=0), tmp_path / "checkpoint"), twin)


def assert_is_twin(run: Trained, twin: Twin) -> None:
    assert run.results[0].grad_norm == pytest.approx(twin.norms[0], rel=1e-5)
    assert [result.grad_norm for result in run.results[:3]] == pytest.approx(twin.norms, rel=1e-3)
    assert_close(run.weights[3], twin.weights)
    assert [result.lr for result in run.results] == pytest.approx([LR * (1 - step / STEPS) for step in range(5)])


@STAGES
def test_log_probs_and_metrics(trained: tuple[int, Trained], twin: Twin) -> None:
    """Log-probs come back in the order they went in; means are over all tokens of all ranks."""
    _, run = trained
    flat: list[float] = []
    for found, wanted in zip(run.logprobs, twin.logprobs, strict=True):
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
            flat += mine
    sampled = [logp for g in batch(0) for c in g.group.completions for logp in c.logprobs]
    gaps = np.array(flat) - np.array(sampled)
    first = run.results[0]
    assert first.tokens == len(flat)
    assert first.logprob_gap_mean == pytest.approx(np.abs(gaps).mean(), rel=1e-4)
    assert first.logprob_gap_max == pytest.approx(np.abs(gaps).max(), rel=1e-4)
    edges = np.cumsum([sum(len(c.token_ids) for c in g.group.completions) for g in batch(0)])[:-1]
    for g, own in zip(batch(0), np.split(np.abs(gaps), edges), strict=True):
        assert first.gaps[g.prompt.id].total == pytest.approx(own.sum(), rel=1e-4)
        assert first.gaps[g.prompt.id].largest == pytest.approx(own.max(), rel=1e-4)
        assert first.gaps[g.prompt.id].tokens == len(own)
    assert len(first.gaps) == len(batch(0))
    assert first.clip_share == pytest.approx(np.mean((np.exp(gaps) < 0.8) | (np.exp(gaps) > 1.2)))
    assert first.kl == 0
    assert run.results[2].kl > 0
    assert 0 < first.entropy < np.log(tiny.VOCABULARY)


@STAGES
def test_published_weights_are_whole(trained: tuple[int, Trained]) -> None:
    """Fault 7: gathered under ZeRO-3, every name, the tied head a second time."""
    _, run = trained
    expected = tiny.model().state_dict()
    assert {name: tensor.shape for name, tensor in run.weights[3].items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    head, embedding = "lm_head.weight", "model.language_model.embed_tokens.weight"
    assert torch.equal(run.weights[3][head], run.weights[3][embedding])
    assert all((run.weights[3][name] - tensor).abs().max() > 0 for name, tensor in expected.items())


@PARTITIONED
def test_resumed_run_is_the_run_left_alone(trained: tuple[int, Trained], model_path: Path, tmp_path: Path) -> None:
    """Fault 12: fresh processes, the same last bits."""
    stage, run = trained
    with opened(settings(model_path, ranks=2, stage=stage)) as group:
        group.load(run.saved)
        results = [group.step(batch(step), at=step) for step in (3, 4)]
        assert_equal(unpack(group.publish(5)), run.weights[5])
        assert results == run.results[3:]
        check_export(group, tmp_path / "export", run.weights[5])


@STAGES
def test_a_checkpoint_takes_the_bytes_that_were_estimated(trained: tuple[int, Trained]) -> None:
    _, run = trained
    size = sum(path.stat().st_size for path in run.saved.rglob("*") if path.is_file())
    assert 0 <= size - run.estimated < 130_000, "zip headers, random states: half of what four bytes a parameter take"


def check_export(group: LearnerGroup, folder: Path, weights: Weights) -> None:
    """transformers loads the export as is, with the weights that were published."""
    import transformers

    group.export(folder)
    loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float32
    )
    assert_equal(loaded.state_dict(), weights)
    assert {"chat_template.jinja", "tokenizer.json", "config.json", "generation_config.json"} <= {
        path.name for path in folder.iterdir()
    }


def test_one_rank_with_a_frozen_tower(ray_session: None, model_path: Path, tmp_path: Path) -> None:
    """ZeRO-1, checkpointed activations, frozen vision: resumes bit for bit, and the tower never moves."""
    config = settings(model_path, ranks=1, stage=1, freeze_vision=True, gradient_checkpointing=True)
    run = train(config, tmp_path / "checkpoint")
    with opened(config) as group:
        group.load(run.saved)
        for step in (3, 4):
            group.step(batch(step), at=step)
        manifest = group.publish(5)
        assert_equal(unpack(manifest), run.weights[5])
    assert manifest.vision_unchanged
    start = tiny.model().state_dict()
    moved = {name for name, tensor in run.weights[5].items() if not torch.equal(tensor, start[name])}
    assert moved == {name for name in start if "visual" not in name}


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_alone_are_trained_saved_and_sent_again(
    ray_session: None, model_path: Path, tmp_path: Path, stage: int
) -> None:
    """LoRA under ZeRO: laws 2, 3 and fault 12; the base is in no checkpoint and travels once."""
    config = settings(model_path, ranks=2, stage=stage).model_copy(
        update={"lora": LORA, "checkpoint": CheckpointConfig(export="adapter")}
    )
    norms, wanted = adapted_twin(model_path, config)
    with opened(config) as group:
        results = [group.step(batch(step), at=step) for step in range(3)]
        first = group.publish(3)
        group.save(tmp_path / "checkpoint")
        results += [group.step(batch(step), at=step) for step in (3, 4)]
        second = group.publish(5)
        weights = {3: unpack(first), 5: unpack(second)}
        group.export(tmp_path / "adapter")
    assert (results[0].kl, results[2].kl > 0) == (0, True), "the reference is the policy without its adapters"
    assert [result.grad_norm for result in results[:3]] == pytest.approx(norms, rel=1e-3)
    assert_close(weights[3], wanted)
    base = tiny.model().state_dict()
    moved = {name for name, tensor in weights[5].items() if not torch.equal(tensor, base[name])}
    assert moved == {name for name in base if ".layers." in name and name.endswith("_proj.weight")}
    again = [old.payload == new.payload for old, new in zip(first.buckets, second.buckets, strict=True)]
    assert again == [bucket.kind != "changing" for bucket in first.buckets]
    assert {bucket.kind for bucket in first.buckets} == {"changing", "fixed", "towers"}
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoint").rglob("*") if path.is_file())
    assert size < sum(tensor.nbytes for tensor in base.values())
    loaded: Any = peft.PeftModel.from_pretrained(tiny.model(), str(tmp_path / "adapter")).merge_and_unload()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, weights[5][name], rtol=0, atol=1e-6)
    with opened(config) as group:
        group.load(tmp_path / "checkpoint")
        resumed = [group.step(batch(step), at=step) for step in (3, 4)]
        assert_equal(unpack(group.publish(5)), weights[5])
    assert resumed == results[3:]


def adapted_twin(model_path: Path, config: Config) -> tuple[list[float], Weights]:
    """Gradient norms of three steps, and the weights after them, of one process of plain torch and naive rows."""
    torch.manual_seed(config.seed)
    policy = load_model(str(model_path), config).train()
    layers = add_adapters(policy, config.lora)
    adapter = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapter, weight_decay=0.0)
    norms = []
    for step in range(3):
        optimizer.param_groups[0]["lr"] = learning_rate(step, peak=LR, steps=STEPS, warmup_steps=0, schedule="linear")
        optimizer.zero_grad()
        torch.autograd.backward(oracle.loss(policy, tiny.model(), batch(step), SPEC, beta=BETA))
        norms.append(float(torch.nn.utils.clip_grad_norm_(adapter, CLIP)))
        optimizer.step()
    source = WeightSource(policy, gathered=lambda _: nullcontext(), bucket_bytes=1, adapters=layers)
    return norms, dict(source)


def test_bfloat16_follows_float32(ray_session: None, model_path: Path) -> None:
    """bf16 forward and weights over float32 master weights; log-probs stay float32."""
    config = settings(model_path, ranks=1, stage=2, dtype="bfloat16")
    # The engines of these groups are made up: their log-probs are not to be corrected for.
    objective = config.objective.model_copy(update={"correction": "none"})
    config = config.model_copy(update={"objective": objective})
    wanted = oracle_norm()
    with opened(config) as group:
        result = group.step(batch(0), at=0)
        weights = unpack(group.publish(1))
    assert result.grad_norm == pytest.approx(wanted, rel=0.05)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def oracle_norm() -> float:
    policy = tiny.model()
    torch.autograd.backward(oracle.loss(policy, policy, batch(0), SPEC, beta=0.0))
    return float(oracle.gradient(policy).norm())


@pytest.mark.parametrize(("stage", "adapted"), [(2, False), (3, True)])
def test_given_answers_are_scored_over_their_prompt(
    ray_session: None, model_path: Path, stage: int, adapted: bool
) -> None:
    """By several ranks, adapters, and with features of a frozen tower: as a plain model scores each row, uncut."""
    config = settings(model_path, ranks=2, stage=stage)
    if adapted:
        config = config.model_copy(update={"lora": LORA})
    groups, plain = tiny.ragged(), tiny.model()
    answers = [tuple(completion.token_ids for completion in scored.group.completions) for scored in groups]
    with opened(config, tower_runs=not adapted) as group:
        prompts = [scored.prompt for scored in groups]
        if adapted:
            prompts = VisionCache(group, cache_bytes=1 << 20).with_features(prompts)
        found = group.candidate_logprobs(prompts, answers)
        assert group.candidate_logprobs([], []) == []
    whole = SPEC.uncut()
    for scored, rows in zip(groups, found, strict=True):
        assert len(rows) == len(scored.group.completions)
        for index, row in enumerate(rows):
            wanted = oracle.row_logprobs(plain, plain, scored, index, whole)[0].detach()
            np.testing.assert_allclose(row, wanted, atol=1e-5)


@pytest.mark.parametrize(("stage", "dtype"), [(2, "bfloat16"), (3, "float32")])
def test_a_learner_without_steps_only_scores(ray_session: None, model_path: Path, stage: int, dtype: str) -> None:
    """It has no optimizer and gives the same log-probs: what evaluates an untrained model trains nothing."""
    config = settings(model_path, ranks=2, stage=stage, dtype=dtype)
    groups = tiny.ragged()
    prompts = [scored.prompt for scored in groups]
    answers = [tuple(completion.token_ids for completion in scored.group.completions) for scored in groups]
    with opened(config.model_copy(update={"steps": 0})) as group:
        found = group.candidate_logprobs(prompts, answers)
    plain, whole = tiny.model(), SPEC.uncut()
    for scored, rows in zip(groups, found, strict=True):
        for index, row in enumerate(rows):
            wanted = oracle.row_logprobs(plain, plain, scored, index, whole)[0].detach()
            np.testing.assert_allclose(row, wanted, atol=1e-5 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("method", ["exact", "sft"])
def test_given_groups_are_learnt_by_two_ranks_as_by_one_twin(ray_session: None, model_path: Path, method: str) -> None:
    """Laws 2 and 3: exact beside two groups that were sampled, each loss the mean over its own groups, by their shares;
    what is given is never cut, and says nothing of a gap to engines."""
    config = settings(model_path, ranks=2, stage=2).model_copy(update={"method": method})
    if method == "sft":
        config = config.model_copy(update={"learner": config.learner.model_copy(update={"beta": 0.0})})
    sampled = (1, 2) if method == "exact" else ()
    groups = [
        one if at in sampled else replace(one, group=replace(one.group, origin="given"))
        for at, one in enumerate(batch(0))
    ]
    with opened(config) as group:
        found = group.step(groups, at=0)
    by_hand = [one for at, one in enumerate(groups) if at not in sampled]
    policy, whole = tiny.model(), SPEC.uncut()
    if method == "sft":
        whole = replace(whole, temperature=1.0)
        wanted = oracle.sft_loss(policy, policy, groups, whole)
    else:
        listed = oracle.exact_loss(policy, tiny.model(), by_hand, whole, beta=BETA, name="exact_arcsine")
        drawn = oracle.loss(policy, tiny.model(), [groups[at] for at in sampled], SPEC, beta=BETA)
        wanted = 0.6 * listed + 0.4 * drawn
    torch.autograd.backward(wanted)
    assert found.grad_norm == pytest.approx(float(oracle.gradient(policy).norm()), rel=1e-5)
    if method == "sft":  # the value of the oracle's exact loss has a baseline taken off, its gradient the same
        assert found.loss == pytest.approx(wanted.item(), rel=1e-4)
    assert found.probabilities.keys() == {one.prompt.id for one in by_hand}
    for one in by_hand:
        for index, share in enumerate(found.probabilities[one.prompt.id]):
            logp = oracle.row_logprobs(policy, policy, one, index, whole)[0]
            assert share == pytest.approx(logp.sum().exp().item(), rel=1e-4)
    assert (found.logprob_gap_max > 0) == (found.clip_share > 0) == (method == "exact")
    assert found.gaps.keys() == {groups[at].prompt.id for at in sampled}


@pytest.mark.parametrize(("ranks", "stage", "loss"), [(1, 0, "grpo"), (2, 1, "gspo"), (2, 2, "grpo"), (2, 3, "gspo")])
def test_several_updates_of_a_step_are_those_of_one_twin(
    ray_session: None, model_path: Path, ranks: int, stage: int, loss: str
) -> None:
    """Laws 2 and 3: two passes over two minibatches, the ratios against the policy before the first of four updates."""
    spec, parts, groups = ScoringSpec(banned=tiny.BANNED), (slice(0, 3), slice(3, 5)), batch(0)
    raw = settings(model_path, ranks=ranks, stage=stage).model_dump()
    raw["rollout"] |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    raw["objective"] |= {"loss": loss, "updates": 2, "minibatches": 2}
    with opened(Config.model_validate(raw)) as group:
        found = group.step(groups, at=0)
        weights = unpack(group.publish(1))

    policy, reference = tiny.model(), tiny.model()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0)
    old = [oracle.all_logprobs(policy, groups[own], spec) for own in parts]
    losses = []
    for _ in range(2):
        for own, before in zip(parts, old, strict=True):
            optimizer.zero_grad()
            wanted = oracle.policy_loss(policy, reference, groups[own], spec, beta=BETA, name=loss, old=before)
            torch.autograd.backward(wanted)
            for parameter in policy.parameters():  # a part without pictures moves the tower by its momentum alone
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
            optimizer.step()
            losses.append(wanted.item())
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-3)
    wanted_weights = {name: tensor.detach() for name, tensor in policy.state_dict().items()}
    assert_close(weights, wanted_weights, share=0.2)
    start = tiny.model().state_dict()
    off = sum((weights[name] - tensor).square().sum() for name, tensor in wanted_weights.items())
    moved = sum((start[name] - tensor).square().sum() for name, tensor in wanted_weights.items())
    assert (off / moved).sqrt() < 1e-3


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_groups_of_older_weights_are_corrected_and_counted_by_their_lag(
    ray_session: None, model_path: Path, ranks: int, stage: int
) -> None:
    """By default, in float32: the weights of the oracle act on two groups of five, and the others keep their own."""
    versions = [5, 3, 5, 3, 4]
    groups = [
        replace(one, group=replace(one.group, weights_version=version))
        for one, version in zip(batch(0), versions, strict=True)
    ]
    with opened(settings(model_path, ranks=ranks, stage=stage)) as group:
        found = group.step(groups, at=5)

    policy, reference = tiny.model(), tiny.model()
    parts: list[Tensor] = []
    flat: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for scored, version in zip(groups, versions, strict=True):
        rewards = np.array(scored.rewards, dtype=np.float32)
        advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        for index, completion in enumerate(scored.group.completions):
            lp, ref, _ = oracle.row_logprobs(policy, reference, scored, index, SPEC)
            weight = (lp.detach() - torch.tensor(completion.logprobs)).exp()
            flat[5 - version] += weight.log().tolist()
            weight = weight.clamp(max=2.0) if version < 5 else torch.ones_like(weight)
            kl = (ref - lp).exp() - (ref - lp) - 1
            gain = (lp - lp.detach()).exp() * float(advantages[index]) * weight
            parts.append((BETA * kl - gain).mean())
    torch.autograd.backward(torch.stack(parts).mean())
    assert found.grad_norm == pytest.approx(float(oracle.gradient(policy).norm()), rel=1e-5)

    assert found.by_lag.keys() == {0, 1, 2}
    for lag, own in found.by_lag.items():
        weights = np.exp(flat[lag])
        assert own.tokens == sum(own.gap_counts) == len(weights)
        assert own.gap_mean == pytest.approx(np.abs(flat[lag]).mean(), rel=1e-4)
        assert own.effective_share == pytest.approx(weights.sum() ** 2 / len(weights) / (weights**2).sum(), rel=1e-3)
        assert own.corrected_share == pytest.approx(np.mean(weights > 2.0) if lag else 0.0)
    assert found.corrected_share > 0


BROKEN: dict[str, Callable[[ScoredGroup], ScoredGroup]] = {
    "rewards that are no number": lambda one: replace(one, rewards=(math.nan,) * len(one.rewards)),
    "an infinite reward": lambda one: replace(one, rewards=(math.inf, *one.rewards[1:])),
    "a gradient whose norm is infinite": lambda one: replace(one, rewards=(1e25, *one.rewards[1:])),
}


@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "float32"), (3, "bfloat16")]
)
def test_a_step_that_is_no_number_leaves_no_trace(
    ray_session: None, model_path: Path, tmp_path: Path, stage: int, dtype: str
) -> None:
    """On all ranks alike: the step after it gives the very bits it gave before, from one checkpoint."""
    config = settings(model_path, ranks=2, stage=stage, dtype=dtype)
    config = config.model_copy(update={"objective": config.objective.model_copy(update={"advantage": "none"})})
    # ZeRO-3 adds up the norm in float64, where it is finite, and clips the gradient as it should.
    broken_by = dict(list(BROKEN.items())[: 2 if stage == 3 else 3])
    with opened(config) as group:
        assert group.step(batch(0), at=0).updates == 1
        group.save(tmp_path / "before")
        wanted, weights = group.step(batch(1), at=1), unpack(group.publish(2))
        assert wanted.updates == 1

        group.load(tmp_path / "before")
        for at, fault in enumerate(broken_by.values()):
            broken = batch(9)
            broken[at] = fault(broken[at])
            skipped = group.step(broken, at=1)
            assert skipped.updates == 0
            assert not math.isfinite(skipped.loss) or not math.isfinite(skipped.grad_norm)
        assert group.step(batch(1), at=1) == wanted
        assert_equal(unpack(group.publish(2)), weights)


def test_ranks_share_the_pictures_of_a_frozen_tower(ray_session: None, model_path: Path) -> None:
    """Under ZeRO-3 all ranks run it equally often, whatever the number of pictures."""
    images = [scored.prompt.images for scored in tiny.ragged() if isinstance(scored.prompt.images, ImageFeatures)]
    config = settings(model_path, ranks=2, stage=3, freeze_vision=True)
    wanted = compute_features(load_model(str(model_path), config), images)
    with opened(config) as group:
        found = {count: group.vision_features(images[:count]) for count in (1, 3, 4)}
    for count, made in found.items():
        assert len(made) == count
        for one, other in zip(made, wanted, strict=False):
            assert isinstance(one, ImageFeatures) and one.digest == other.digest
            assert np.array_equal(one.values["image_embeds"], other.values["image_embeds"])
