"""Completions out of vLLM: how it is told to sample them, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from common.errors import EngineError
from common.types import Completion, FailedGroup, FinishReason, GenerationRequest, Group, VersionSpan

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

FINISHED: tuple[FinishReason, ...] = ("stop", "length")  # what ends a whole answer; vLLM knows abort, error and others


def make_sampling_params(request: GenerationRequest) -> SamplingParams:
    """Make vLLM's settings of a request.

    Raises:
        EngineError: vLLM puts another value in the place of one. The learner would score under the value asked for.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    asked = {**asdict(request.sampling), "seed": request.seed}
    params = SamplingParams(
        **asked,
        logprobs=0,  # the sampled token's own
        detokenize=False,  # _detokenize does, for distinct answers and without a text for every log-prob
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    if changed := [
        f"{name} {value} to {getattr(params, name)}" for name, value in asked.items() if getattr(params, name) != value
    ]:
        raise EngineError(
            "vLLM does not sample as it was asked to",
            got=f"for {request.prompt_id} it changed {', '.join(changed)}",
            remedy="set the key of rollout to a value that vLLM leaves alone",
        )
    return params


def make_group(llm: LLM, request: GenerationRequest, output: Any, *, engine_id: str) -> Group | FailedGroup:
    """Make the group of a finished request, a FailedGroup where vLLM has given one of its answers up."""
    outputs = sorted(output.outputs, key=lambda one: one.index)
    if given_up := sorted({str(one.finish_reason) for one in outputs} - set(FINISHED)):
        return FailedGroup(
            prompt_id=request.prompt_id, reason=f"the engine gave an answer up: it ended by {', '.join(given_up)}"
        )

    texts = _detokenize(llm, request, outputs)
    spans = [
        tuple(VersionSpan(int(span.version), span.end - span.start) for span in one.weight_versions) for one in outputs
    ]
    versions = {span.version for own in spans for span in own}
    mixed = len(versions) > 1
    return Group(
        prompt_id=request.prompt_id,
        completions=tuple(
            _make_completion(one, text, own if mixed else ())
            for one, text, own in zip(outputs, texts, spans, strict=True)
        ),
        origin="sampled",
        seed=request.seed,
        engine_id=engine_id,
        weights_version=min(versions),
    )


def _detokenize(llm: LLM, request: GenerationRequest, outputs: Sequence[Any]) -> list[str]:
    """Return the text of each answer by vLLM's own detokenizer, which reads equal answers once."""
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    as_vllm_request: Any = SimpleNamespace(
        request_id=request.prompt_id,
        prompt_token_ids=list(request.token_ids),
        sampling_params=make_sampling_params(request),
    )
    tokenizer = llm.get_tokenizer()
    texts: dict[tuple[int, ...], str] = {}
    for one in outputs:
        ids = tuple(one.token_ids)
        if ids not in texts:
            reader = IncrementalDetokenizer.from_new_request(tokenizer, as_vllm_request)
            reader.update(list(ids), stop_terminated=one.finish_reason == "stop")
            texts[ids] = reader.get_next_output_text(finished=True, delta=False)
    return [texts[tuple(one.token_ids)] for one in outputs]


def _list_spans(output: Any) -> tuple[VersionSpan, ...]:
    return tuple(VersionSpan(int(span.version), span.end - span.start) for span in output.weight_versions)


def _make_completion(output: Any, text: str, spans: tuple[VersionSpan, ...]) -> Completion:
    ids = tuple(output.token_ids)
    return Completion(
        token_ids=ids,
        logprobs=tuple(float(step[token].logprob) for token, step in zip(ids, output.logprobs, strict=True)),
        text=text,
        finish_reason=output.finish_reason,
        spans=spans,
    )
