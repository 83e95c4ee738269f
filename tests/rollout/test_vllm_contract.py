"""What engines hand to vLLM and read from it where no engine on a CPU does, held against vLLM's own definitions."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray

from common.config.schema import Config, DataConfig, ModelConfig
from common.types import FailedGroup, GenerationRequest, Group, Sampling, WeightBucket, WeightEntry, WeightManifest
from rollout.build import _settings_on_gpu
from rollout.exchange.outputs import make_group
from rollout.spec import EngineSpec
from rollout.weight_loader import receive_by_nccl

pytestmark = pytest.mark.engine
ROLLOUT = Path(__file__).parents[2] / "rollout"
QWEN: Any = SimpleNamespace(model_config=SimpleNamespace(hf_config=SimpleNamespace(vision_config=None)))
SPEC = EngineSpec(
    model_path="model",
    revision=None,
    dtype="bfloat16",
    device="cuda",
    max_model_len=64,
    max_sequences=8,
    kv_cache_bytes=1 << 30,
    gpu_memory_utilization=0.5,
    image_size=None,
    model=ModelConfig(),
    data=DataConfig(),
    banned=(),
    transport="nccl",
    trust_remote_code=False,
    threads=1,
    cpus=1,
    gpus=1,
)


@pytest.fixture
def ask(ray_session: None) -> Callable[[Callable[[], Any]], Any]:
    """Return what calls a function in a process that has vLLM, and returns its answer."""
    environment = {"env_vars": dataclasses.replace(SPEC, device="cpu").environment()}
    return lambda function: ray.get(
        ray.remote(function).options(num_cpus=0, runtime_env=environment).remote(), timeout=120
    )


def test_the_settings_of_a_gpu_are_settings_of_vllm(ask: Any) -> None:
    def read() -> tuple[Any, ...]:
        from vllm.engine.arg_utils import EngineArgs

        args: Any = EngineArgs(model=str(ROLLOUT), trust_remote_code=False, **_settings_on_gpu(SPEC))
        return args.gpu_memory_utilization, args.kv_cache_memory_bytes, args.weight_transfer_config.backend

    assert ask(read) == (0.5, 1 << 30, "nccl")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_vllm_reads_the_variables_that_an_engine_gets(ask: Any, device: str) -> None:
    def read() -> set[str]:
        from vllm import envs

        return set(envs.environment_variables)

    own = {name for name in dataclasses.replace(SPEC, device=device).environment() if name.startswith("VLLM_")}
    assert own
    assert own <= ask(read)


def test_a_gpu_worker_has_every_method_that_is_called_by_name(ask: Any) -> None:
    def read() -> set[str]:
        from vllm.v1.worker.gpu_worker import Worker

        return set(dir(Worker))

    called = {
        node.args[0].value
        for file in ROLLOUT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "collective_rpc"
        if isinstance(node.args[0], ast.Constant)
    }
    assert {"init_weight_transfer_engine", "update_weights"} <= called <= ask(read)


def test_both_ends_of_nccl_open_the_group_alike(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from learner.trainer import group

    monkeypatch.setattr(group, "call", lambda *_: None)
    monkeypatch.setattr(group, "get", lambda *_, **__: [("10.0.0.1", 4321)])
    ring = SimpleNamespace(ranks=[None], run=lambda work: work([None]))
    learner: Any = SimpleNamespace(_ring=ring, _config=Config())
    rendezvous = group.LearnerGroup.nccl_rendezvous(learner, 3, 60)

    def read() -> tuple[Any, Any]:
        from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        told = NCCLWeightTransferInitInfo(**rendezvous)
        sent = NCCLTrainerInitInfo(rank=0, master_address="10.0.0.1", master_port=4321, world_size=3)
        return (told.packed, told.packed_num_buffers), (sent.packed, sent.packed_num_buffers)

    engine, trainer = ask(read)
    assert engine == trainer


def test_vllm_takes_the_weights_as_they_are_announced(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    llm: Any = SimpleNamespace(
        collective_rpc=lambda name, args=(): said.update({name: args}),
    )
    monkeypatch.setattr("rollout.weight_loader.get_worker", lambda _: QWEN)
    entry = WeightEntry(name="lm_head.weight", dtype="bfloat16", shape=(4, 2), index=0, start=0)
    bucket = WeightBucket(entries=(entry,), xxh3=0, payload=None, kind="changing")
    manifest = WeightManifest(version=0, buckets=(bucket,), vision_unchanged=False)
    receive_by_nccl(llm, manifest)
    (update,) = said["update_weights"]

    def read() -> tuple[Any, ...]:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

        announced = NCCLWeightTransferUpdateInfo(**update)
        return announced.dtype_names, announced.shapes

    assert ask(read) == (["bfloat16"], [[4, 2]])


def test_only_a_whole_answer_becomes_a_completion(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the ways in which vLLM ends one."""

    def read() -> tuple[str, ...]:
        from vllm.v1.engine import FINISH_REASON_STRINGS

        return FINISH_REASON_STRINGS

    monkeypatch.setattr("rollout.exchange.outputs._detokenize", lambda *_: ["one", "two"])
    sampling = Sampling(n=2, temperature=1.0, top_p=1.0, top_k=0, max_tokens=1)
    asked = GenerationRequest(prompt_id="p", token_ids=(1,), images=None, seed=0, sampling=sampling)
    kept, unused = {}, cast(Any, None)
    for reason in ask(read):
        outputs = [make_output(0, "length"), make_output(1, reason)]
        group = make_group(unused, asked, SimpleNamespace(outputs=outputs), engine_id="engine")
        if isinstance(group, Group):
            kept[reason] = group.completions[1].finish_reason
        else:
            assert isinstance(group, FailedGroup)
            assert reason in group.reason
    assert kept == {"stop": "stop", "length": "length"}


def make_output(index: int, reason: str) -> Any:
    """Return an answer of one token as vLLM gives it."""
    logprobs = [{7: SimpleNamespace(logprob=-1.0)}]
    versions = [SimpleNamespace(version="0", start=0, end=1)]
    return SimpleNamespace(
        index=index, token_ids=[7], logprobs=logprobs, finish_reason=reason, weight_versions=versions
    )


ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "by layer": {
        "full_attention": {"rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_type": "default"},
    },
    "none": {},
}
KEYS: dict[str, dict[str, Any]] = {
    "positions": {"max_position_embeddings": 1000},
    "the smallest": {"max_position_embeddings": 1000, "seq_length": 300},
    "a length of its own": {"max_position_embeddings": 1000, "model_max_length": 5000},
    "a shorter one of its own": {"max_position_embeddings": 1000, "model_max_length": 500},
    "no bound": {},
}


def test_the_longest_sequence_is_as_vllm_says(ask: Any) -> None:
    """The preflight refuses a length exactly where vLLM does: one token more than the longest it takes."""
    from learner.driver.preflight.sizes import find_longest

    texts = {
        (key, rope, kind): SimpleNamespace(model_type=kind, rope_parameters=ROPES[rope], **KEYS[key])
        for key in KEYS
        for rope in ROPES
        for kind in ("qwen2_vl_text", "gemma3_text")
    }
    longest = {name: min(find_longest(text)[0], 10**6) for name, text in texts.items()}

    def read() -> dict[Any, list[bool]]:
        from vllm.config.model import _get_and_verify_max_len
        from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

        def takes(text: Any, length: int) -> bool:
            convertor: Any = SimpleNamespace(hf_text_config=text)
            found = ModelArchConfigConvertorBase.derive_max_model_len_and_key(convertor)
            facts: Any = SimpleNamespace(derived_max_model_len_and_key=found)
            try:
                _get_and_verify_max_len(text, facts, None, length, False, None)
            except ValueError:
                return False
            return True

        return {
            name: [takes(text, int(longest[name])), takes(text, int(longest[name]) + 1)] for name, text in texts.items()
        }

    for name, (fits, too_long) in ask(read).items():
        assert fits and too_long == (longest[name] == 10**6), name


def test_a_generation_config_changes_no_request(ask: Any) -> None:
    """Of all that a model's file says of sampling vLLM takes the ends of answers alone, for requests of ours."""
    found = {"temperature": 0.01, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05, "max_new_tokens": 3}
    asked = GenerationRequest(
        prompt_id="a",
        token_ids=(1, 2),
        images=None,
        seed=1,
        sampling=Sampling(n=2, temperature=0.7, top_p=0.9, top_k=5, max_tokens=9),
    )

    def read() -> tuple[str, str]:
        from rollout.exchange.outputs import make_sampling_params

        before, after = make_sampling_params(asked), make_sampling_params(asked)
        before.update_from_generation_config({}, 2)
        after.update_from_generation_config(found, 2)
        return repr(before), repr(after)

    before, after = ask(read)
    assert before == after and "temperature=0.7" in before


@pytest.mark.parametrize("architecture", ["qwen2_vl", "gemma3"])
def test_an_engine_starts_with_the_least_cache_and_not_with_less(ask: Any, tmp_path: Path, architecture: Any) -> None:
    """What the preflight counts is what vLLM asks for; of layers with a window no more than that."""
    from common.config.schema import ModelConfig
    from common.engine_sizes import choose_cpu_block, count_least_cache
    from common.models.processor import load_model_config
    from tests.helpers.models import build_random_model

    folder = str(build_random_model(tmp_path / "model", seed=1, architecture=architecture))
    text = load_model_config(ModelConfig(path=folder)).get_text_config()
    longest = 300
    least = count_least_cache(text, longest=longest, block=choose_cpu_block("float32", longest), itemsize=4)
    sizes = [least - 1] if architecture == "gemma3" else [least - 1, least]
    spec = dataclasses.replace(
        SPEC, device="cpu", dtype="float32", max_model_len=longest, model_path=folder, transport="object_store"
    )

    def start() -> list[str]:
        from rollout.build import build_engine

        said = []
        for size in sizes:
            try:
                build_engine(dataclasses.replace(spec, kv_cache_bytes=size), model_path=folder)
            except Exception as error:  # noqa: BLE001  # whatever vLLM raises
                said.append(str(error))
            else:
                said.append("started")
        return said

    refused, *rest = ask(start)
    assert "KV cache" in refused and rest == ["started"] * (len(sizes) - 1)
