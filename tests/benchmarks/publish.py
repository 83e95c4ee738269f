"""New weights from learner to engine, through Ray, against what no system can save: one copy of their bytes, and
vLLM's own reload of tensors that lie in its process already.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tests.benchmarks import w1
from tests.benchmarks.engines import bare, batches, options, side_alone, workload
from tests.benchmarks.report import THREADS, best, emit, middle, seconds, table

SIDES = ("rollcall", "floor")


def parser() -> argparse.ArgumentParser:
    return options(__doc__, SIDES)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.alone:
        (name,) = arguments.workloads
        side = rollcall if arguments.alone == "rollcall" else floor
        emit("publish", side(name, repeats=arguments.repeats))
        return 0
    found = {name: _sides(name, arguments.repeats) for name in arguments.workloads}
    ratio = {name: one["publish_s"] / (one["memcpy_s"] + one["load_s"]) for name, one in found.items()}
    columns = ("mb", "send_s", "receive_s", "publish_s", "memcpy_s", "load_s")
    print(table(["model", *columns, "ratio"], [[n, *(one[c] for c in columns), ratio[n]] for n, one in found.items()]))
    emit("publish", {"ratio_vs_floor": ratio, "parts": found})
    return 0


def rollcall(name: str, *, repeats: int) -> dict[str, float]:
    """Medians of publishing weights that a step has changed: the learner's half, the engine's half, both."""
    what = workload(name)
    send, receive = [], []
    with w1.running(what) as run:
        prompts = next(batches(what, what.model.encoder))[:2]
        for version in range(1, repeats + 2):
            run.learner.step(_learnable(run, prompts, version), at=version)
            manifests: list[Any] = []
            send.append(seconds(lambda v=version, m=manifests: m.append(run.learner.publish(v))))  # type: ignore[misc]
            receive.append(seconds(lambda m=manifests: run.fleet.publish(m[0])))  # type: ignore[misc]
    both = middle(a + b for a, b in zip(send[1:], receive[1:], strict=True))
    return {"send_s": middle(send[1:]), "receive_s": middle(receive[1:]), "publish_s": both}


def _learnable(run: Any, prompts: Sequence[Any], step: int) -> list[Any]:
    """Groups sampled now, with rewards that change every weight."""
    from common.types import ScoredGroup
    from rollout.requests import training_requests

    requests = training_requests(prompts, run.config.rollout, seed=0, step=step)
    by_id = {prompt.id: prompt for prompt in prompts}
    scored = []
    for group in run.fleet.generate(requests):
        rewards = tuple(float(index) for index in range(len(group.completions)))
        one = {"prompt": by_id[group.prompt_id], "group": group}
        scored.append(ScoredGroup(**one, rewards_by_name={"index": rewards}, rewards=rewards))
    return scored


def floor(name: str, *, repeats: int) -> dict[str, float]:
    """The fastest copy of all bytes into memory that is there, and the fastest reload by vLLM alone."""
    import torch

    from learner.model.load import load_model

    torch.set_num_threads(THREADS)
    what = workload(name)
    model = load_model(what.model.path, what.config)
    tensors = [(key, tensor.detach().clone()) for key, tensor in model.state_dict().items()]
    flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for _, tensor in tensors])
    there = torch.ones_like(flat)
    llm = bare(what)
    reload(llm, tensors)
    return {
        "mb": flat.numel() / 1e6,
        "memcpy_s": best(lambda: there.copy_(flat), repeats=repeats),
        "load_s": best(lambda: reload(llm, tensors), repeats=repeats),
    }


def reload(llm: Any, tensors: Sequence[tuple[str, Any]]) -> None:
    """As vLLM's own weight-transfer engines do it, with the caches reset that hang on the old weights."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    model = worker.model_runner.model
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        model.load_weights(tensors)
        finalize_layerwise_reload(model, worker.model_config)
        for module in model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
    llm.reset_prefix_cache()
    llm.llm_engine.reset_encoder_cache()


def _sides(name: str, repeats: int) -> dict[str, float]:
    found = [side_alone("publish", side, name, repeats) for side in SIDES]
    return {key: value for one in found for key, value in one.items() if isinstance(value, float)}


if __name__ == "__main__":
    raise SystemExit(main())
