"""A vLLM engine as Rollcall sets it up: in this very process, and quick at many answers to one prompt."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from common.engine_sizes import BATCHED_TOKENS, KV_CACHE_BYTES, choose_cpu_block
from common.lean_imports import import_transformers, leave_out_compiler, pause_collector
from rollout import vllm_patches
from rollout.spec import EngineSpec

if TYPE_CHECKING:
    from vllm import LLM


def build_engine(spec: EngineSpec, *, model_path: str) -> LLM:
    """Build an engine with the weights of the checkpoint, where this host has them. Raises whatever vLLM raises."""
    with pause_collector():
        _import_vllm(spec)
        gc.freeze()  # vLLM collects three times while it builds, and shall not look through what was imported: 1 s
        return _make_llm(spec, model_path)


def _import_vllm(spec: EngineSpec) -> None:
    """Import vLLM without what an engine never uses."""
    if spec.device == "cpu":
        leave_out_compiler()
        vllm_patches.leave_out_server()
        vllm_patches.leave_out_triton()
    import_transformers()
    vllm_patches.quicken_start()
    vllm_patches.keep_pictures()


def _make_llm(spec: EngineSpec, model_path: str) -> LLM:
    from vllm import LLM

    for_device = _settings_on_cpu(spec) if spec.device == "cpu" else _settings_on_gpu(spec)
    llm = LLM(
        model=model_path,
        revision=spec.revision,
        dtype=spec.dtype,  # type: ignore[arg-type]
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_sequences,
        limit_mm_per_prompt={"image": 1},
        mm_processor_cache_gb=0,  # pictures come processed ...
        mm_device_do_normalize=False,  # ... to the end: normalised floats, not bytes
        mm_processor_kwargs={"size": spec.image_size} if spec.image_size else None,
        skip_mm_profiling=spec.device == "cpu",
        logprobs_mode="processed_logprobs",
        seed=0,  # every request carries its own
        trust_remote_code=spec.trust_remote_code,
        disable_log_stats=True,
        **for_device,
    )
    llm.apply_model(vllm_patches.remember_positions)
    llm.apply_model(lambda model: vllm_patches.ban_tokens(model, spec.banned))
    return llm


def _settings_on_cpu(spec: EngineSpec) -> dict[str, Any]:
    """Apply the patches that a CPU needs before the model is built, and return its settings."""
    vllm_patches.leave_small_layers_unpacked()
    block_size = choose_cpu_block(spec.dtype, spec.max_model_len)
    if block_size == 16:
        vllm_patches.allow_blocks_of_16()
    return {
        "enforce_eager": True,
        "block_size": block_size,
        "enable_chunked_prefill": False,  # see `vllm_patches.PATCHES`
        "max_num_batched_tokens": max(BATCHED_TOKENS, spec.max_model_len, spec.max_sequences),
        "kv_cache_memory_bytes": spec.kv_cache_bytes or KV_CACHE_BYTES,
        "distributed_executor_backend": "uni",
    }


def _settings_on_gpu(spec: EngineSpec) -> dict[str, Any]:
    settings: dict[str, Any] = {"gpu_memory_utilization": spec.gpu_memory_utilization}
    if spec.kv_cache_bytes is not None:
        settings["kv_cache_memory_bytes"] = spec.kv_cache_bytes
    if spec.transport == "nccl":
        settings["weight_transfer_config"] = {"backend": "nccl"}
    return settings
