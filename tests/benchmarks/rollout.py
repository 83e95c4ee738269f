"""Sampling through Rollcall's fleet (an engine in a Ray actor, groups streamed back) against a bare `vllm.LLM.generate`
in its own process: same settings, prompts, seeds and weights, so the very same tokens.

Pictures are sampled from twice: new, which the bare engine preprocesses and Rollcall's driver has preprocessed before,
and again with all that hangs on weights forgotten but no picture to preprocess on either side. The second is the ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from common.data.image import read_pixels
from common.types import Prompt
from tests.benchmarks import w1
from tests.benchmarks.engines import bare, batches, options, side_alone, workload
from tests.benchmarks.report import emit, middle, seconds, table

SIDES = ("rollcall", "bare")


def parser() -> argparse.ArgumentParser:
    return options(__doc__, SIDES)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.alone:
        (name,) = arguments.workloads
        measured = _rollcall(name) if arguments.alone == "rollcall" else _bare(name)
        emit("rollout", _medians(measured, repeats=arguments.repeats))
        return 0
    found = {
        name: {side: side_alone("rollout", side, name, arguments.repeats) for side in SIDES}
        for name in arguments.workloads
    }
    again = {name: one["bare"]["again_s"] / one["rollcall"]["again_s"] for name, one in found.items()}
    new = {name: one["bare"]["new_s"] / one["rollcall"]["new_s"] for name, one in found.items()}
    head = ["seconds", *(f"{side} {kind}" for kind in ("again", "new") for side in SIDES), "ratio", "ratio new"]
    rows = [
        [name, *(one[side][f"{kind}_s"] for kind in ("again", "new") for side in SIDES), again[name], new[name]]
        for name, one in found.items()
    ]
    print(table(head, rows))
    for name, one in found.items():
        if one["rollcall"]["tokens"] != one["bare"]["tokens"]:
            raise RuntimeError(f"{name}: the sides sampled different numbers of tokens")
    emit("rollout", {"ratio_vs_bare": again, "ratio_new_pictures": new, "sides": found})
    return 0


def _rollcall(name: str) -> Iterator[tuple[float, float, int]]:
    """Seconds of new pictures, of the same again, and tokens sampled; once for every batch."""
    from common.types import Group
    from rollout.requests import training_requests

    what = workload(name)
    with w1.running(what) as run:
        for step, prompts in enumerate(batches(what, what.model.encoder)):
            requests = training_requests(prompts, what.config.rollout, seed=0, step=step)
            groups: list[Any] = []

            def sample(requests: Any = requests, groups: list[Any] = groups) -> None:
                groups[:] = run.fleet.generate(requests)

            run.publish(2 * step + 1)
            new = seconds(sample)
            run.publish(2 * step + 2)
            again = seconds(sample)
            if not all(isinstance(group, Group) for group in groups):
                raise RuntimeError(f"{groups}")
            yield new, again, sum(len(one.token_ids) for group in groups for one in group.completions)


def _bare(name: str) -> Iterator[tuple[float, float, int]]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from rollout.requests import training_requests

    what = workload(name)
    llm = bare(what)
    rollout = what.config.rollout
    encoder = w1.local_encoder(what)
    for step, prompts in enumerate(batches(what, encoder)):
        requests = training_requests(prompts, rollout, seed=0, step=step)
        inputs = [
            {
                "prompt_token_ids": list(prompt.text_ids),
                "multi_modal_data": {"image": _picture(prompt)},
            }
            for prompt in prompts
        ]
        params = [
            SamplingParams(
                n=rollout.group_size,
                temperature=rollout.temperature,
                max_tokens=rollout.max_completion_tokens,
                seed=request.seed,
                logprobs=0,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for request in requests
        ]
        outputs: list[Any] = []

        def sample(inputs: Any = inputs, params: Any = params, outputs: list[Any] = outputs) -> None:
            outputs[:] = llm.generate(inputs, params, use_tqdm=False)

        took = []
        for _ in range(2):
            llm.reset_prefix_cache()
            llm.llm_engine.reset_encoder_cache()
            took.append(seconds(sample))
        yield took[0], took[1], sum(len(one.token_ids) for output in outputs for one in output.outputs)


def _picture(prompt: Prompt) -> Any:
    from PIL import Image

    assert prompt.example.image is not None
    return Image.fromarray(read_pixels(prompt.example.image))


def _medians(measured: Iterator[tuple[float, float, int]], *, repeats: int) -> dict[str, Any]:
    """Of `repeats` batches, after one that warms up."""
    next(measured)
    found = [next(measured) for _ in range(repeats)]
    measured.close()  # type: ignore[attr-defined]  # a generator: its run ends here
    return {
        "new_s": middle(new for new, _, _ in found),
        "again_s": middle(again for _, again, _ in found),
        "tokens": sum(tokens for _, _, tokens in found),
    }


if __name__ == "__main__":
    raise SystemExit(main())
