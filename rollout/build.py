"""A vLLM engine as Rollcall sets it up: in this very process, and quick at many answers to one prompt."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from common.engine_sizes import BATCHED_TOKENS, KV_CACHE_BYTES
from common.models.docstrings import leave_out_docstrings
from rollout.spec import EngineSpec

if TYPE_CHECKING:
    import torch
    from vllm import LLM
    from vllm.v1.sample.logits_processor import LogitsProcessor

SMALL = 1 << 16  # elements of a float32 weight that is left as it comes


def build(spec: EngineSpec) -> LLM:
    """Up, with the checkpoint's weights. Raises whatever vLLM does."""
    leave_out_docstrings()
    from vllm import LLM

    if spec.device == "cpu":
        _leave_small_layers_unpacked()
    only_on_cpu: dict[str, Any] = {
        "enforce_eager": True,
        "block_size": _block_size(spec),
        "enable_chunked_prefill": False,  # a seeded request in a partial prefill kills the CPU engine
        "max_num_batched_tokens": max(BATCHED_TOKENS, spec.max_model_len),
        "kv_cache_memory_bytes": spec.kv_cache_bytes or KV_CACHE_BYTES,
        "distributed_executor_backend": "uni",
    }
    only_on_gpu: dict[str, Any] = {"gpu_memory_utilization": spec.gpu_memory_utilization}
    if spec.kv_cache_bytes is not None:
        only_on_gpu["kv_cache_memory_bytes"] = spec.kv_cache_bytes
    if spec.transport == "nccl":
        only_on_gpu["weight_transfer_config"] = {"backend": "nccl"}
    llm = LLM(
        model=spec.model_path,
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
        logits_processors=[_ban(spec.banned)],
        seed=0,  # every request carries its own
        trust_remote_code=False,
        disable_log_stats=True,
        **(only_on_cpu if spec.device == "cpu" else only_on_gpu),
    )
    llm.apply_model(_remember_positions)
    return llm


def _block_size(spec: EngineSpec) -> int:
    """Tokens of a block of the KV cache on CPU: only full blocks of a prompt are shared by its G answers.

    vLLM's default of 128 is longer than many prompts. It declares 32 the least, but its kernels for blocks of 16 are
    there, for heads of odd sizes: the embedded default's prompt of 17 tokens is computed once a group with them, and G
    times without. Measured, they are as fast with heads of 64 at 272 tokens, a quarter slower at 1024 and with heads of
    128 at 272: 512 is a compromise. AMX has none.
    """
    import torch
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    by_amx = spec.dtype == "bfloat16" and torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    if by_amx or spec.max_model_len > 512:
        return 32
    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(lambda kv_cache_spec=None: [MultipleOf(16)])  # type: ignore[method-assign, assignment]
    return 16


@cache
def _leave_small_layers_unpacked() -> None:
    """Of any size, a layer takes oneDNN a third of a millisecond to pack, after every push of weights, and a small one
    multiplies no faster for it. Measured on the embedded default: loads of 12 ms became 3 ms, sampling took as long."""
    import torch
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: Any, remove_weight: bool) -> None:
        weight = layer.weight
        if weight.ndim == 2 and weight.dtype == torch.float32 and weight.numel() <= SMALL and not weight.is_meta:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            pack(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = dispatch


def _remember_positions(model: Any) -> None:
    """G requests of a group come one after the other with the same prompt: compute its rotary positions once."""
    if not hasattr(model, "get_mrope_input_positions"):
        return
    compute = model.get_mrope_input_positions
    last: tuple[Any, Any] = (None, None)

    def positions(token_ids: list[int], pictures: list[Any]) -> Any:
        nonlocal last
        key = (tuple(token_ids), tuple(picture.identifier for picture in pictures))
        if last[0] != key:
            last = key, compute(token_ids, pictures)
        return last[1]

    model.get_mrope_input_positions = positions


def _ban(banned: tuple[int, ...]) -> type[LogitsProcessor]:
    """A logits processor that gives the banned ids probability 0: one operation a step for the whole batch."""
    import torch
    from vllm.v1.sample.logits_processor import LogitsProcessor

    class BanTokens(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self._ids = torch.tensor(banned, dtype=torch.long, device=device)

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            pass

        def apply(self, logits: torch.Tensor) -> torch.Tensor:  # (sequences, V)
            return logits.index_fill_(1, self._ids, float("-inf"))

    return BanTokens
