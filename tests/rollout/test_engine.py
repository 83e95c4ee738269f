"""The real engine: what it samples from, what it refuses, and that it serves what was published."""

from __future__ import annotations

import dataclasses
import os
import signal
from typing import Any

import pytest
import ray
import torch
from tokenizers.decoders import DecodeStream

from common.errors import EngineError
from common.placement import get
from common.types import FailedGroup, GenerationRequest, Group, ImageFeatures, Sampling, UnreadPicture
from learner.model.vision_features import compute_features
from rollout.fleet import life
from rollout.fleet.fleet import RolloutFleet
from rollout.requests import request
from tests.helpers.makers import noise
from tests.helpers.policy import SAMPLED, Policy

pytestmark = pytest.mark.engine
TIGHT = 2e-5


def groups(fleet: RolloutFleet, requests: list) -> list[Group]:  # type: ignore[type-arg]
    found = sorted(fleet.generate(requests), key=lambda group: group.prompt_id)
    assert all(isinstance(group, Group) for group in found), found
    return [group for group in found if isinstance(group, Group)]


def tokens(found: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group.completions] for group in found]


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLED,
        dataclasses.replace(SAMPLED, temperature=0.7),
        dataclasses.replace(SAMPLED, temperature=1.3, top_k=20),
        dataclasses.replace(SAMPLED, top_p=0.8),
        dataclasses.replace(SAMPLED, temperature=0.9, top_k=30, top_p=0.9),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "all"],
)
def test_law_1_engine_and_learner_give_the_same_log_probs(
    fleet: RolloutFleet, policy: Policy, sampling: Sampling
) -> None:
    """Fault 10: sampling settings that the learner does not score with."""
    policy.push(fleet, 0)
    prompts = [policy.prompt(n, size=size) for n, size in enumerate([(56, 56), (84, 140), (112, 56)])]
    found = groups(fleet, [request(prompt, sampling, seed=n) for n, prompt in enumerate(prompts)])
    assert policy.gap(prompts, found, sampling) < TIGHT


@pytest.mark.parametrize("moved", ["everything", "visual", "lm_head", "language_model"])
def test_law_1_holds_after_every_push_on_images_and_prompts_seen_before(
    fleet: RolloutFleet, policy: Policy, moved: str
) -> None:
    """Fault 8: cached image features, keys and values of the old weights; and a stale tied head."""
    prompts = [policy.prompt(n) for n in range(3)]
    requests = [request(prompt, SAMPLED, seed=n) for n, prompt in enumerate(prompts)]
    policy.push(fleet, 0)
    before = groups(fleet, requests)
    for version in (1, 2):
        policy.shake(version, lambda name: moved in ("everything", "lm_head") or moved in name)
        policy.push(fleet, version)
        after = groups(fleet, requests)
        assert policy.gap(prompts, after, SAMPLED) < TIGHT
        assert {group.weights_version for group in after} == {version}
        assert fleet.versions() == dict.fromkeys(fleet.versions(), version)
    assert tokens(before) != tokens(after), "the push changed nothing: this test could not fail"


def test_image_features_may_stay_when_the_tower_is_frozen(fleet: RolloutFleet, policy: Policy) -> None:
    prompts = [policy.prompt(n) for n in range(2)]
    requests = [request(prompt, SAMPLED, seed=n) for n, prompt in enumerate(prompts)]
    policy.push(fleet, 0)
    groups(fleet, requests)
    policy.shake(7, lambda name: "visual" not in name)
    policy.push(fleet, 1, vision_unchanged=True)
    assert policy.gap(prompts, groups(fleet, requests), SAMPLED) < TIGHT


def test_law_1_holds_when_only_what_changed_is_sent_again(fleet: RolloutFleet, policy: Policy) -> None:
    """Of what vLLM fuses with q_proj's weight nothing else changes: that comes again as the same objects."""
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(name.endswith("q_proj.weight"))
    sender, prompts = policy.sender(), [policy.prompt(n) for n in range(3)]
    requests = [request(prompt, SAMPLED, seed=n) for n, prompt in enumerate(prompts)]
    sampled, payloads = [], []
    for version in range(3):
        policy.shake(version, lambda name: name.endswith("q_proj.weight"))
        manifest = sender.publish(version)
        fleet.publish(manifest)
        sampled.append(groups(fleet, requests))
        assert policy.gap(prompts, sampled[-1], SAMPLED) < TIGHT
        payloads.append({bucket.kind: bucket.payload for bucket in manifest.buckets})
    assert tokens(sampled[0]) != tokens(sampled[2]), "the pushes changed nothing: this test could not fail"
    assert payloads[0].keys() == {"changing", "fixed", "towers"}
    assert {kind for kind, payload in payloads[2].items() if payload == payloads[0][kind]} == {"fixed", "towers"}


def test_law_5_tokens_depend_on_the_seed_alone(fleet: RolloutFleet, policy: Policy) -> None:
    policy.push(fleet, 0)
    prompts = [policy.prompt(n) for n in range(6)]
    requests = [request(prompt, SAMPLED, seed=100 * n) for n, prompt in enumerate(prompts)]
    together = groups(fleet, requests)
    assert tokens(groups(fleet, requests[::-1])) == tokens(together)
    assert tokens(groups(fleet, requests[2:3])) == tokens(together)[2:3]
    other = [dataclasses.replace(one, seed=one.seed + 50) for one in requests]
    assert tokens(groups(fleet, other)) != tokens(together)


def test_features_of_a_frozen_tower_stand_for_pixels(fleet: RolloutFleet, policy: Policy) -> None:
    policy.push(fleet, 0)
    prompts = [policy.prompt(n, size=size) for n, size in enumerate([(56, 56), (84, 140)])]
    images = [prompt.images for prompt in prompts if isinstance(prompt.images, ImageFeatures)]
    featured = [
        dataclasses.replace(prompt, images=made)
        for prompt, made in zip(prompts, compute_features(policy.model, images), strict=True)
    ]
    found = groups(fleet, [request(prompt, SAMPLED, seed=n) for n, prompt in enumerate(featured)])
    assert policy.gap(prompts, found, SAMPLED) < TIGHT  # against the learner's own way from the pixels


def test_a_picture_that_the_engine_reads_gives_the_tokens_of_one_it_is_handed(
    fleet: RolloutFleet, policy: Policy
) -> None:
    """One it cannot read fails alone and by its row's name; the engine goes on."""
    policy.push(fleet, 0)
    files = [noise((168, 224), seed=number) for number in range(3)]
    handed = [policy.prompt_of_file(number, data) for number, data in enumerate(files)]
    unread = [policy.prompt_of_file(number, data, reads=False) for number, data in enumerate(files)]
    broken = policy.prompt_of_file(3, files[0][:5000], reads=False)
    wanted = groups(fleet, [request(prompt, SAMPLED, seed=n) for n, prompt in enumerate(handed)])
    restarts = fleet.restarts
    requests = [request(prompt, SAMPLED, seed=n) for n, prompt in enumerate([*unread, broken])]
    assert all(isinstance(one.images, UnreadPicture) for one in requests)
    found = {one.prompt_id: one for one in fleet.generate(requests)}
    failed = found.pop("test/3")
    sampled = {name: one.completions for name, one in found.items() if isinstance(one, Group)}
    assert sampled == {one.prompt_id: one.completions for one in wanted}
    assert isinstance(failed, FailedGroup) and "the picture of test/3" in failed.reason and "truncated" in failed.reason
    assert fleet.restarts == restarts


def test_text_is_what_a_stream_of_the_tokens_would_show(fleet: RolloutFleet, policy: Policy) -> None:
    """Random weights answer with anything: special tokens, which are left out, and halves of characters."""
    policy.push(fleet, 0)
    prompts = {prompt.id: prompt for prompt in (policy.prompt(n) for n in range(4))}
    found = groups(fleet, [request(prompt, SAMPLED, seed=n) for n, prompt in enumerate(prompts.values())])
    tokenizer = policy.encoder._processor.tokenizer  # noqa: SLF001
    for group in found:
        for one in group.completions:
            stream = DecodeStream(ids=list(prompts[group.prompt_id].token_ids), skip_special_tokens=True)
            shown = [stream.step(tokenizer.backend_tokenizer, token) or "" for token in one.token_ids]
            assert one.text == "".join(shown)


def test_a_group_computes_its_prompt_once_but_for_the_last_block(fleet: RolloutFleet, policy: Policy) -> None:
    """By two patches of vLLM: blocks of 16 on a CPU, and positions that are computed once."""
    policy.push(fleet, 0)
    prompt = policy.prompt(0, size=(84, 140))
    (member,) = fleet._board.serving()  # noqa: SLF001
    ray.get(member.handle.__ray_call__.remote(watch), timeout=60)
    groups(fleet, [request(prompt, dataclasses.replace(SAMPLED, n=8), seed=0)])
    tokens_by_step, positions = ray.get(member.handle.__ray_call__.remote(unwatch), timeout=60)
    length = len(prompt.token_ids)
    assert length > 32
    assert tokens_by_step[0] == length + 7 * (length - (length - 1) // 16 * 16)
    assert len(positions) == 1


def test_vllm_says_what_it_samples_and_what_it_puts_off(fleet: RolloutFleet, policy: Policy) -> None:
    policy.push(fleet, 0)
    (member,) = fleet._board.serving()  # noqa: SLF001
    asked = request(policy.prompt(0), dataclasses.replace(SAMPLED, n=3), seed=0)
    before, during, after, again = ray.get(member.handle.__ray_call__.remote(put_off, asked), timeout=60)
    assert (during["vllm_requests_running"], during["vllm_requests_waiting"]) == (3, 0)
    assert (after["vllm_requests_running"], after["vllm_requests_waiting"]) == (0, 3)
    assert before["vllm_kv_cache_usage"] == 0 < during["vllm_kv_cache_usage"] < 1
    assert (during["vllm_preemptions"], after["vllm_preemptions"]) == (before["vllm_preemptions"], 3)
    assert again["vllm_preemptions"] == 3, "a reset for newer weights is no want of KV cache"


def put_off(engine: Any, asked: GenerationRequest) -> list[dict[str, float]]:
    """Inside the actor: what the engine reports at first, while it samples, once all is put off, and after a reset."""
    found = []

    def read() -> None:
        found.append({one.name: one.value for one in engine._usage.read()})  # noqa: SLF001

    read()
    engine._begin((asked,))  # noqa: SLF001
    engine._llm.llm_engine.step()  # noqa: SLF001
    read()
    scheduler = engine._llm.llm_engine.engine_core.engine_core.scheduler  # noqa: SLF001
    while scheduler.running:  # as its own `schedule` does where blocks run out
        scheduler._preempt_request(scheduler.running.pop(), 0.0)  # noqa: SLF001
    read()
    engine._llm.llm_engine.step()  # noqa: SLF001
    scheduler.reset_prefix_cache(reset_running_requests=True)
    read()
    engine._abort(list(engine._running))  # noqa: SLF001
    return found


def watch(engine: Any) -> None:
    """Inside the actor: note down what each step computes, and which position tensors the requests hold."""
    core = engine._llm.llm_engine.engine_core.engine_core  # noqa: SLF001
    scheduler, runner = core.scheduler, core.model_executor.driver_worker.worker.model_runner
    engine.tokens_by_step, engine.positions = [], set()
    schedule = scheduler.schedule

    def watched(*args: Any, **kwargs: Any) -> Any:
        planned = schedule(*args, **kwargs)
        engine.tokens_by_step.append(planned.total_num_scheduled_tokens)
        engine.positions = {id(request.mrope_positions) for request in runner.requests.values()}
        return planned

    scheduler.schedule = watched


def unwatch(engine: Any) -> tuple[list[int], set[int]]:
    """What was noted."""
    del engine._llm.llm_engine.engine_core.engine_core.scheduler.schedule  # noqa: SLF001
    return engine.tokens_by_step, engine.positions


def test_fault_9_banned_tokens_are_never_sampled(fleet: RolloutFleet, policy: Policy) -> None:
    """The head is turned towards the image token; neither side may give it any probability."""
    embedding = policy.model.get_input_embeddings().weight
    image = policy.model.config.image_token_id
    assert image in policy.banned
    with torch.no_grad():
        embedding[image] *= 50
        embedding[:image] *= 0.01
        embedding[image + 1 :] *= 0.01
    policy.push(fleet, 3)
    prompts = [policy.prompt(n) for n in range(4)]
    found = groups(fleet, [request(prompt, SAMPLED, seed=n) for n, prompt in enumerate(prompts)])
    sampled = {token for group in found for one in group.completions for token in one.token_ids}
    assert not sampled & set(policy.banned)
    assert policy.gap(prompts, found, SAMPLED) < TIGHT


def test_fault_4_a_prompt_the_engine_reads_differently_fails_alone(fleet: RolloutFleet, policy: Policy) -> None:
    policy.push(fleet, 0)
    good, whole, resized, blind, long = (request(policy.prompt(n, size=(84, 56)), SAMPLED, seed=n) for n in range(5))
    image = policy.model.config.image_token_id
    cut = dataclasses.replace(whole, token_ids=tuple(whole.token_ids[: whole.token_ids.index(image) + 1]))
    assert isinstance(resized.images, ImageFeatures)
    larger = {"image_grid_thw": resized.images.values["image_grid_thw"] * (1, 2, 1)}
    resized = dataclasses.replace(
        resized, images=ImageFeatures(digest="larger", values={**resized.images.values, **larger})
    )
    blind = dataclasses.replace(blind, images=None)
    long = dataclasses.replace(long, token_ids=(*long.token_ids, *[long.token_ids[-1]] * 200))
    found = {one.prompt_id: one for one in fleet.generate([good, cut, resized, blind, long])}
    assert isinstance(found["test/0"], Group)
    for number, word in enumerate(["differently", "differently", "no picture", "maximum"], 1):
        failed = found[f"test/{number}"]
        assert isinstance(failed, FailedGroup)
        assert word in failed.reason
    restarts = fleet.restarts
    (again,) = groups(fleet, [whole])  # what was refused has left nothing in the engine that could harm
    assert (again.prompt_id, fleet.restarts) == ("test/1", restarts)


def test_greedy_decoding_takes_the_likeliest_token(fleet: RolloutFleet, policy: Policy) -> None:
    policy.push(fleet, 0)
    prompt = policy.prompt(0)
    greedy = Sampling(n=1, temperature=0.0, top_p=1.0, top_k=0, max_tokens=3)
    (group,) = groups(fleet, [request(prompt, greedy, seed=0)])
    inputs = {
        "input_ids": torch.tensor([prompt.token_ids]),
        **{name: torch.tensor(value) for name, value in prompt.features.items()},
    }
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == policy.model.config.image_token_id).int()
    with torch.no_grad():
        logits = policy.model(**inputs).logits[0, -1]
    logits[list(policy.banned)] = -torch.inf
    assert group.completions[0].token_ids[0] == int(logits.argmax())


def test_an_engine_refuses_versions_it_does_not_hold_and_damaged_bytes(fleet: RolloutFleet, policy: Policy) -> None:
    manifest = policy.push(fleet, 4)
    (member,) = fleet._board.serving()  # noqa: SLF001
    with pytest.raises(ray.exceptions.RayTaskError, match="does not hold"):
        ray.get(next(member.handle.serve.options(num_returns="streaming").remote(5, 1)), timeout=60)
    first = manifest.buckets[0]
    arrays = [array.copy() for array in ray.get(first.payload, timeout=60)]
    arrays[1][10] ^= 1
    damaged = dataclasses.replace(first, payload=ray.put(arrays))
    load = member.handle.load.remote(dataclasses.replace(manifest, version=5, buckets=(damaged, *manifest.buckets[1:])))
    with pytest.raises(EngineError, match="arrived damaged"):
        get([load], what="damaged weights", timeout_s=60)
    assert list(fleet.versions().values()) == [4]


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_lost_engine_is_replaced_and_gives_the_same_tokens_under_the_current_weights(
    fleet: RolloutFleet, policy: Policy, monkeypatch: pytest.MonkeyPatch, harm: signal.Signals
) -> None:
    """Law 1 after a restart, law 5 under a fault: the replacement starts with the checkpoint's weights."""
    monkeypatch.setattr(life, "FRESH_S", 4.0)
    monkeypatch.setattr(life, "LEAST_S", {"cpu": 4.0})
    policy.shake(11)
    policy.push(fleet, 6)
    prompts = [policy.prompt(n) for n in range(24)]
    short = dataclasses.replace(SAMPLED, n=16, max_tokens=2)
    long = dataclasses.replace(short, max_tokens=16)
    requests = [request(prompt, long if n % 2 else short, seed=n) for n, prompt in enumerate(prompts)]
    undisturbed = groups(fleet, requests)
    (info,), restarts = fleet.ready(), fleet.restarts
    stream = fleet.generate(requests)
    first = next(stream)  # the short groups are out, the long ones are in the making
    os.kill(info.pid, harm)
    found = sorted([first, *stream], key=lambda group: group.prompt_id)
    assert fleet.restarts == restarts + 1, "the fault came too late to matter"
    assert tokens([group for group in found if isinstance(group, Group)]) == tokens(undisturbed)
    assert policy.gap(prompts[:4], groups(fleet, requests[:4]), SAMPLED) < TIGHT
    assert set(fleet.versions().values()) == {6}
