"""Receiving half of weight transfer: verified bytes in, a vLLM model that samples from them out.

Every transport sends the full set. A partial one would be silently wrong: vLLM fuses several Hugging Face tensors
into one and leaves the missing part uninitialised.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from common.errors import EngineError
from common.types import WeightBucket, WeightManifest

if TYPE_CHECKING:
    import torch
    from vllm import LLM


def receive(manifest: WeightManifest) -> list[tuple[str, torch.Tensor]]:
    """Fetch every bucket from the object store and check it; (name, tensor) pairs that alias the store's memory.

    Raises:
        EngineError: a bucket's checksum is not the manifest's.
    """
    import ray

    tensors: list[tuple[str, torch.Tensor]] = []
    for index, bucket in enumerate(manifest.buckets):
        payload = ray.get(bucket.payload, timeout=600)
        found = zlib.crc32(payload)
        if found != bucket.crc32:
            raise EngineError(
                f"bucket {index} of weights version {manifest.version} arrived damaged",
                got=f"crc32 {found:08x}, published as {bucket.crc32:08x}",
                remedy="publish the version again; if it recurs, suspect the node's memory or object store",
            )
        tensors.extend(_tensors(bucket, payload))
    return tensors


def _tensors(bucket: WeightBucket, payload: Any) -> Iterator[tuple[str, torch.Tensor]]:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # loading only reads
        flat = torch.from_numpy(payload)
    for entry in bucket.entries:
        raw = flat[entry.offset : entry.offset + entry.nbytes]
        yield entry.name, raw.view(getattr(torch, entry.dtype)).view(entry.shape)


def load_weights(llm: LLM, tensors: list[tuple[str, torch.Tensor]], *, keep_image_features: bool) -> None:
    """Load the full set into a running in-process engine and reset what was computed with the old one.

    `keep_image_features`: the vision tower did not change, so cached image features are still right.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    worker = _worker(llm)
    model = worker.model_runner.model
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        model.load_weights(tensors)
        finalize_layerwise_reload(model, worker.model_config)
        for module in model.modules():
            if isinstance(module, ParallelLMHead):  # a tied head keeps its own packed copy otherwise
                module.quant_method.process_weights_after_loading(module)
    reset_caches(llm, keep_image_features=keep_image_features)


def reset_caches(llm: LLM, *, keep_image_features: bool) -> None:
    """Forget keys, values and image features of the old weights (fault 8 of the seed)."""
    llm.reset_prefix_cache()
    if not keep_image_features:
        llm.llm_engine.reset_encoder_cache()


def receive_nccl(llm: LLM, manifest: WeightManifest, *, keep_image_features: bool) -> None:
    """Take part in the learner's packed broadcast through vLLM's own NCCL weight-transfer engine (GPU only)."""
    entries = [entry for bucket in manifest.buckets for entry in bucket.entries]
    update_info = {
        "names": [entry.name for entry in entries],
        "dtype_names": [entry.dtype for entry in entries],
        "shapes": [list(entry.shape) for entry in entries],
    }
    llm.collective_rpc("start_weight_update")
    llm.collective_rpc("update_weights", args=(update_info,))
    llm.collective_rpc("finish_weight_update")
    reset_caches(llm, keep_image_features=keep_image_features)


def _worker(llm: LLM) -> Any:
    """The worker inside this process (engine, core and worker share it when multiprocessing is off)."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker  # type: ignore[attr-defined]
