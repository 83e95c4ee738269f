"""Every place where Rollcall replaces a part of vLLM or works around a fault of it, in one inventory.

`PATCHES` lists them all, those that stand in this file and those that stand elsewhere. Each names a test of
`tests/rollout/test_vllm_patches.py` that runs vLLM without the patch and asserts that the fault is still there: when
that test fails, the patch can go. `VLLM_VERSION` is the version they were last checked against.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

from common.lean_imports import do_nothing, leave_out

VLLM_VERSION = "0.32.0"
SMALL_WEIGHT = 1 << 16  # elements; a float32 weight of at most so many multiplies as fast unpacked
LEAST_ROWS = 16  # of a product; with 1 to 3 MKL takes another way, whose last bits differ


class Patch(NamedTuple):
    """One entry of the inventory."""

    where: str  # `module.function` of ours that holds it
    what: str  # what of vLLM is replaced or avoided
    why: str
    test: str  # fails when vLLM no longer needs the patch


PATCHES = (
    Patch(
        where="rollout.vllm_patches.leave_small_layers_unpacked",
        what="layers.utils.dispatch_cpu_unquantized_gemm packs every linear layer for oneDNN, on a CPU",
        why="packing takes 0.3 ms a layer after every push of weights; a small layer multiplies no faster for it",
        test="test_a_small_layer_is_packed",
    ),
    Patch(
        where="rollout.vllm_patches.allow_blocks_of_16",
        what="CPUAttentionBackend.get_supported_kernel_block_sizes declares multiples of 32 only",
        why="its kernels take blocks of 16 too, and only full blocks of a prompt are shared by the G answers",
        test="test_blocks_of_16_are_not_declared",
    ),
    Patch(
        where="rollout.vllm_patches.remember_positions",
        what="get_mrope_input_positions of the Qwens runs once for each of the G requests of a group",
        why="it takes longer than sampling a short answer, and the G results are equal",
        test="test_positions_are_computed_for_every_answer",
    ),
    Patch(
        where="rollout.vllm_patches.pack_heads_and_experts",
        what="a layerwise reload packs neither a tied head again, where only the embedding comes, nor experts",
        why="the engine would go on with the old ones (law 1)",
        test="test_a_reload_leaves_old_heads_and_experts",
    ),
    Patch(
        where="rollout.vllm_patches.ban_tokens",
        what="compute_logits of the model gives image and video tokens, and others that are no answer, probability 0",
        why="vLLM samples them like any other token, and the learner would take them for pictures (fault 9)",
        test="test_image_tokens_are_sampled",
    ),
    Patch(
        where="rollout.vllm_patches.ban_tokens",
        what="a logits processor, vLLM's public way to change logits, is not used for that",
        why="each of its two model runners refuses the other's class, and the sampling mask refuses them all",
        test="test_the_model_runners_share_no_logits_processor",
    ),
    Patch(
        where="rollout.vllm_patches.keep_pictures",
        what="a worker gets no pixels of a picture whose keys and values another request has computed",
        why="a request that is put off, or goes on with new weights, needs them again: vLLM fails in that step",
        test="test_pictures_that_others_have_read_are_gone",
    ),
    Patch(
        where="rollout.exchange.inputs.make_engine_input",
        what="pictures reach the scheduler without vLLM's processor, of which the private fields are asked",
        why="engine and learner must read the very same ids and pixels (law 4), and vLLM has no public way for that",
        test="test_how_inputs_divide_into_pictures_is_private",
    ),
    Patch(
        where="rollout.build.build_engine",
        what="enable_chunked_prefill, which is on by default, is switched off on a CPU",
        why="a step that computes a part of a prompt raises when the request has a seed",
        test="test_a_part_of_a_seeded_prompt_breaks_the_engine",
    ),
    Patch(
        where="rollout.engine.RolloutEngine.serve",
        what="an engine of which one step failed serves nothing any more and is replaced",
        why="the requests of the failed step stay in the scheduler for ever, and later calls would wait for them",
        test="test_a_part_of_a_seeded_prompt_breaks_the_engine",
    ),
    Patch(
        where="rollout.direct_load",
        what="its own loader finds the place of every tensor anew, at every load, on a CPU",
        why="the places never change: copies that were recorded once take a fraction of the time",
        test="test_a_reload_looks_up_every_tensor_again",
    ),
    Patch(
        where="rollout.vllm_patches.leave_out_server",
        what="an engine imports what only a server or torch's compiler uses, on a CPU",
        why="it costs 3 s of CPU at every start of an engine",
        test="test_an_engine_imports_a_server_and_the_compiler",
    ),
    Patch(
        where="rollout.vllm_patches.leave_out_triton",
        what="an engine on a CPU imports Triton where that is installed, and then says that it cannot use it",
        why="it costs 0.3 s of CPU at every start of an engine",
        test="test_an_engine_imports_a_server_and_the_compiler",
    ),
    Patch(
        where="rollout.vllm_patches.quicken_start",
        what="an engine logs its arguments, warms up a renderer, and looks for kernels in every module there is",
        why="it costs 0.8 s of CPU at every start of an engine; nobody reads the log, or asks the renderer",
        test="test_an_engine_does_at_its_start_what_it_need_not",
    ),
    Patch(
        where="rollout.vllm_patches.count_preemptions",
        what="the scheduler's _preempt_request counts its calls",
        why="vLLM counts preemptions only where it gathers statistics of every request in every step",
        test="test_preemptions_are_not_counted_without_statistics",
    ),
)

OF_A_SERVER = ("fastapi", "openai", "scipy", "vllm.parser", "vllm.reasoning")
ENV_OVERRIDE = "vllm.env_override"  # repairs torch's compiler, for which it imports all of that


@cache
def leave_small_layers_unpacked() -> None:
    """Make vLLM multiply by small float32 weights as they are, on a CPU; call it before a model is built.

    Measured on the embedded default: a load of 12 ms takes 3 ms, and sampling takes as long as before.
    """
    import torch
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: Any, remove_weight: bool) -> None:
        weight = layer.weight
        small = weight.ndim == 2 and weight.dtype == torch.float32 and weight.numel() <= SMALL_WEIGHT
        if small and not weight.is_meta:
            layer.cpu_linear = multiply_alike
        else:
            pack(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = dispatch


def multiply_alike(x: Any, weight: Any, bias: Any = None) -> Any:
    """Multiply as torch does, with bits that do not depend on how many rows there are.

    So the log-probs of a token do not depend on what else an engine samples at the time: another engine gives the same
    (law 5). Packed layers multiply so anyway.
    """
    from torch.nn.functional import linear, pad

    rows = x.shape[:-1].numel()
    if rows >= LEAST_ROWS:
        return linear(x, weight, bias)
    filled = pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, LEAST_ROWS - rows))
    return linear(filled, weight, bias)[:rows].reshape(*x.shape[:-1], weight.shape[0])


def allow_blocks_of_16() -> None:
    """Make vLLM accept `block_size=16` for the KV cache on a CPU.

    Of a prompt of 17 tokens the G answers share a block of 16, and one token is computed G times. With blocks of 32
    none is full, and all 17 are computed G times. Its kernels for AMX take no blocks of 16: do not call it there.
    """
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(lambda kv_cache_spec=None: [MultipleOf(16)])  # type: ignore[method-assign, assignment]


def remember_positions(model: Any) -> None:
    """Make `model` compute the rotary positions of a prompt once for the G requests of a group, which come in turn."""
    if not hasattr(model, "get_mrope_input_positions"):
        return
    compute = model.get_mrope_input_positions
    last: tuple[Any, Any] = (None, None)  # key and positions of the prompt before

    def positions(token_ids: list[int], pictures: list[Any]) -> Any:
        nonlocal last
        key = (tuple(token_ids), tuple(picture.identifier for picture in pictures))
        if last[0] != key:
            last = key, compute(token_ids, pictures)
        return last[1]

    model.get_mrope_input_positions = positions


def keep_pictures() -> None:
    """Let vLLM's worker keep the pixels of every picture. They are in this process, and are not copied for it."""
    from vllm.v1.core.sched import output

    output.strip_covered_mm_data = lambda features, *_, **__: features  # type: ignore[attr-defined]


def ban_tokens(model: Any, banned: tuple[int, ...]) -> None:
    """Make `model` give the token ids `banned` probability 0, by one operation a step for the whole batch.

    Its own logits say so, whichever of vLLM's model runners samples from them: V1 on a CPU, V2 on a GPU.
    """
    import torch

    compute = model.compute_logits
    ids = torch.tensor(banned, dtype=torch.long, device=next(model.parameters()).device)
    model.compute_logits = lambda hidden: compute(hidden).index_fill_(1, ids, float("-inf"))


def count_preemptions(scheduler: Any) -> Callable[[], int]:
    """Make a scheduler count the requests that it puts off for want of KV cache. Return what reads the count.

    Those that it computes anew with newer weights, as its caches are reset, are not counted.
    """
    preempt, reset, count = scheduler._preempt_request, scheduler.reset_prefix_cache, 0  # noqa: SLF001

    def preempt_and_count(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        preempt(*args, **kwargs)

    def reset_uncounted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        before = count
        done = reset(*args, **kwargs)
        count = before
        return done

    scheduler._preempt_request, scheduler.reset_prefix_cache = preempt_and_count, reset_uncounted  # noqa: SLF001
    return lambda: count


def pack_heads_and_experts(model: Any) -> None:
    """Pack again what vLLM's layerwise reload leaves as it was: a head tied to the embedding, and a CPU's experts.

    A tied head keeps a packed copy of the embedding's weight. Experts are packed when the model is built, and never
    again.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
        elif type(layer).__name__ == "RoutedExperts" and current_platform.is_cpu():
            layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)


@cache
def leave_out_server() -> None:
    """Leave out what vLLM answers HTTP requests with: OpenAI's types, readers of tool calls and of thoughts, sound: 2 s
    of CPU. And its repair of torch's compiler: 1 s.

    Call it before vLLM is imported, on a CPU, where nothing is compiled.
    """
    leave_out(*OF_A_SERVER, ENV_OVERRIDE)


def leave_out_triton() -> None:
    """Let vLLM find no Triton, unless it is imported already. Call it before vLLM is imported, on a CPU: 0.3 s."""
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # None: it is not installed


@cache
def quicken_start() -> None:
    """Leave out what an engine does at its start for others than us. Call it before an engine is made."""
    entry_point: Any = import_module("vllm.entrypoints.llm")
    entry_point.log_non_default_args = do_nothing  # imports the server's command line to find them: 0.2 s

    renderers: Any = import_module("vllm.renderers.base")
    renderers.BaseRenderer.warmup = do_nothing  # renders a chat and a picture, which come rendered here: 0.2 s

    dispatcher: Any = import_module("vllm.triton_utils.dispatcher")
    dispatcher._rebind_kernels = _rebind_in_own_modules(dispatcher)  # noqa: SLF001


def _rebind_in_own_modules(dispatcher: Any) -> Any:
    """Wrap `_rebind_kernels`, which looks for Triton's kernels in every module of the process, to look in vLLM's, which
    alone hold any: 0.4 s of CPU."""
    rebind = dispatcher._rebind_kernels  # noqa: SLF001

    def rebind_own(overrides: Any) -> None:
        own = {name: module for name, module in sys.modules.items() if name.startswith("vllm.")}
        dispatcher.sys = SimpleNamespace(modules=own)
        try:
            rebind(overrides)
        finally:
            dispatcher.sys = sys

    return rebind_own
