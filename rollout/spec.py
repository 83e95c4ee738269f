"""What an engine is built from, and the facts of one that is up."""

from __future__ import annotations

import os
from dataclasses import dataclass

from common.allocator import KEPT_MEMORY
from common.capacity import PlaceRequest
from common.config.schema import Config, DataConfig, ModelConfig
from common.config.sections import MOST_ANSWERS
from common.models.families import family_of
from common.models.processor import image_size, load_model_config
from common.shared_folder import SharedFolder
from common.telemetry.reporting import Reporting


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What every engine of a fleet is built from; plain values, so that it travels to the actor."""

    model_path: str | SharedFolder  # on another host than the driver's the engine fetches it
    revision: str | None
    trust_remote_code: bool  # run Python code that lies beside the weights
    dtype: str
    device: str  # "cpu" or "cuda"
    max_model_len: int  # prompt + completion tokens
    max_sequences: int  # decoded at once
    kv_cache_bytes: int | None  # None: `gpu_memory_utilization` of the GPU, or `common.engine_sizes`
    gpu_memory_utilization: float  # share of the GPU's memory
    image_size: dict[str, int] | None  # of the image processor, in families that bound pixels
    model: ModelConfig  # as the driver reads it, for pictures
    data: DataConfig
    banned: tuple[int, ...]  # token ids never sampled; the learner masks the same ones
    transport: str  # of weights: "object_store" or "nccl"
    threads: int  # OMP threads of the process
    cpus: float  # that its actor asks of Ray
    gpus: float
    reporting: Reporting | None = None  # what it needs to report what it does; None: it does not

    def environment(self) -> dict[str, str]:
        """Return the variables that the process must have before torch and vLLM are imported."""
        common = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(self.threads),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_MAX_N_SEQUENCES": str(MOST_ANSWERS),  # whatever this machine says, as the configuration was checked
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
            "JOBLIB_MULTIPROCESSING": "0",  # joblib would leave a semaphore in /dev/shm
            "TQDM_DISABLE": "1",
            "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # whoever calls torch.load: a file that holds code is refused
        }
        if self.device == "cuda":
            return common
        # Binding would pin every engine to core 0; dynamo would compile a log-prob helper with g++ for 15 s.
        only_on_cpu = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
        return common | only_on_cpu | KEPT_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """The facts of an engine that is up."""

    engine_id: str
    pid: int
    startup_seconds: float


def engine_spec(config: Config, *, model_path: str, banned: tuple[int, ...]) -> EngineSpec:
    """Return what the configuration says of every engine."""
    rollout, model = config.rollout, config.model.model_copy(update={"path": model_path})
    return EngineSpec(
        model_path=model_path,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        dtype=config.model.dtype,
        device=config.cluster.device,
        max_model_len=config.data.max_prompt_tokens + rollout.max_completion_tokens,
        max_sequences=rollout.max_sequences,
        kv_cache_bytes=None if rollout.kv_cache_mb is None else rollout.kv_cache_mb << 20,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        image_size=image_size(model, family_of(load_model_config(model))),
        model=config.model,
        data=config.data,
        banned=banned,
        transport=config.weights.transport,
        threads=config.cluster.threads,
        cpus=rollout.cpus_per_engine,
        gpus=rollout.gpus_per_engine,
    )


def make_engine_request(config: Config) -> PlaceRequest:
    """Make the request for the place of one engine."""
    rollout = config.rollout
    bundle = {"CPU": rollout.cpus_per_engine, "GPU": rollout.gpus_per_engine}
    return PlaceRequest(what="an engine", bundles=(bundle,), labels=tuple(rollout.labels))
