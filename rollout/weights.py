"""Receiving half of weight transfer: verified bytes in, a vLLM model that samples from them out.

Every transport gives the full set. A partial one would be silently wrong: vLLM fuses several Hugging Face tensors into
one and leaves the missing part uninitialised. Only what stands before the language model may be left out, as a whole:
vLLM keeps a layer that gets nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.checksum import checksum
from common.errors import EngineError
from common.families import engine_name
from common.types import WeightBucket, WeightManifest

if TYPE_CHECKING:
    import torch
    from vllm import LLM


Tensors = list[tuple[str, "torch.Tensor"]]
FETCH_S = 600.0


class Inbox:
    """The buckets of an engine. What comes again as the same object is neither fetched nor checked again."""

    def __init__(self) -> None:
        self._fixed: dict[Any, Tensors] = {}  # by ObjectRef; they alias the store's memory

    def receive(self, manifest: WeightManifest, *, towers: bool) -> Tensors:
        """(name, tensor) pairs of the whole manifest, or of all but `towers` for an engine that has them.

        They alias the object store's memory. All buckets are fetched at once, so that one is on its way while another
        is checked.

        Raises:
            EngineError: a bucket's checksum is not the manifest's.
        """
        import ray

        buckets = [bucket for bucket in manifest.buckets if towers or bucket.kind != "towers"]
        new = [bucket for bucket in buckets if bucket.payload not in self._fixed]
        payloads = ray.get([bucket.payload for bucket in new], timeout=FETCH_S)
        arrived = {
            bucket.payload: _checked(bucket, arrays, manifest.version)
            for bucket, arrays in zip(new, payloads, strict=True)
        }
        tensors = [pair for bucket in buckets for pair in (arrived | self._fixed)[bucket.payload]]
        self._fixed |= {bucket.payload: arrived[bucket.payload] for bucket in new if bucket.kind == "fixed"}
        return tensors


def _checked(bucket: WeightBucket, arrays: Any, version: int) -> Tensors:
    import warnings

    import torch

    if (found := checksum(arrays)) != bucket.xxh3:
        raise EngineError(
            f"the bucket from {bucket.entries[0].name} on of weights version {version} arrived damaged",
            got=f"xxh3 {found:016x}, published as {bucket.xxh3:016x}",
            remedy="publish the version again; if it recurs, suspect the node's memory or object store",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # loading only reads
        flat = [torch.from_numpy(array) for array in arrays]
    return [
        (entry.name, flat[entry.index].view(getattr(torch, entry.dtype)).view(entry.shape)) for entry in bucket.entries
    ]


def load_weights(llm: LLM, tensors: Tensors, *, keep_image_features: bool) -> None:
    """Load what `Inbox.receive` gave into a running in-process engine and reset what was computed with the old one.

    `keep_image_features`: the vision tower did not change, so cached image features are still right.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
    from vllm.platforms import current_platform

    worker = _worker(llm)
    model = worker.model_runner.model
    config = worker.model_config.hf_config
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        model.load_weights((engine_name(name, config), tensor) for name, tensor in tensors)
        finalize_layerwise_reload(model, worker.model_config)
        for module in model.modules():
            if isinstance(module, ParallelLMHead):  # a tied head keeps its own packed copy otherwise
                module.quant_method.process_weights_after_loading(module)
            elif type(module).__name__ == "RoutedExperts" and current_platform.is_cpu():  # packed once only otherwise
                module.quant_method.moe_kernel.fused_experts.process_weights_after_loading(module)
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
        "names": [engine_name(entry.name, _worker(llm).model_config.hf_config) for entry in entries],
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
