"""One vLLM engine inside a Ray actor: requests in, groups of completions streamed out as they finish.

vLLM runs in this very process (no child to leak), and the actor is synchronous: no generation can fall between
start and finish of a weight update.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from common.errors import BrokenEngineError, EngineError
from common.object_store import fetch_features
from common.recorder import Recorder
from common.shared_folder import find_local
from common.storage.output import Place, WriteReport
from common.types import (
    Completion,
    FailedGroup,
    FinishReason,
    GenerationRequest,
    Group,
    ImageFeatures,
    LoadedWeights,
    WeightManifest,
)
from rollout.build import build_engine
from rollout.spec import EngineInfo, EngineSpec
from rollout.weight_loader import WeightLoader, receive_by_nccl
from rollout.weights import WeightReceiver

if TYPE_CHECKING:
    from vllm import SamplingParams

FETCH_TIMEOUT_S = 600.0  # for the image features of a batch, and for each piece of the model
FINISHED: tuple[FinishReason, ...] = ("stop", "length")  # what ends a whole answer; vLLM knows abort, error and others
Outcomes = tuple[Group | FailedGroup, ...]


class RolloutEngine:
    """One engine as a Ray actor. It starts with the checkpoint's weights, and serves once a version is loaded."""

    def __init__(self, spec: EngineSpec, engine_id: str) -> None:
        started = time.monotonic()
        self._spec = spec
        self._id = engine_id
        self._llm = build_engine(spec, model_path=find_local(spec.model_path, timeout_s=FETCH_TIMEOUT_S))
        self._version: int | None = None  # None: nothing is served
        self._requests = 0  # handed to vLLM so far: the next one's name
        self._recorder = Recorder()
        self._receiver = WeightReceiver()
        self._loader = WeightLoader(self._llm)
        self._startup_seconds = time.monotonic() - started

    def info(self) -> EngineInfo:
        """Return the facts of this engine; an answer means that it is up."""
        return EngineInfo(engine_id=self._id, pid=os.getpid(), startup_seconds=self._startup_seconds)

    def version(self) -> int | None:
        """Return the version of the weights it would sample with; None before the first load."""
        return self._version

    def load(self, manifest: WeightManifest) -> LoadedWeights:
        """Replace every weight by those of the manifest, reset the caches, and return what is served now.

        A manifest without buckets (`rollout.fleet.OWN_WEIGHTS`) leaves the weights the engine started with.

        Raises:
            EngineError: the bytes do not match their checksum (the old version is still served).
            BrokenEngineError: vLLM could not take them; nothing is served any more.
        """
        # Bytes that are damaged are refused here, while the old version is still served.
        keep_vision = manifest.vision_unchanged and self._version is not None
        received = None if manifest.by_nccl else self._receiver.receive(manifest, towers=not keep_vision)

        self._version = None  # half-loaded weights must never serve
        note = None
        try:
            if received is None:
                receive_by_nccl(self._llm, manifest, keep_image_features=keep_vision)
            elif manifest.buckets:
                note = self._loader.load(received, keep_image_features=keep_vision)
        except Exception as error:
            raise self._describe_failure("loading weights", error) from error

        self._llm.llm_engine.set_weight_version(str(manifest.version))
        self._version = manifest.version
        return LoadedWeights(version=manifest.version, note=note)

    def start_profile(self) -> None:
        """Record what this process does from now on."""
        self._recorder.start()

    def stop_profile(self, place: Place) -> WriteReport:
        """Write what was recorded to `place`, under this engine's name."""
        return self._recorder.stop(place, self._id)

    def join(self, init_info: Mapping[str, Any]) -> None:
        """Enter the NCCL group that the learner's rank 0 has opened; return when every engine is in it."""
        self._llm.collective_rpc("init_weight_transfer_engine", args=(dict(init_info),))

    def generate(self, requests: Sequence[GenerationRequest], version: int) -> Iterator[Outcomes]:
        """Yield groups as they finish, several at a time when they finish together.

        A request vLLM refuses becomes a FailedGroup; the others go on.

        Raises:
            EngineError: this engine does not hold the version asked for.
            BrokenEngineError: vLLM failed in a step; nothing is served any more.
        """
        if self._version != version:
            raise EngineError(
                f"engine {self._id} was asked for weights it does not hold",
                got=f"version {self._version}, asked for {version}",
                remedy="load that version first; the fleet does so for every engine it serves from",
            )
        try:
            yield from self._generate(requests, version)
        except GeneratorExit:
            self._abort_all()
            raise
        except Exception as error:
            self._version = None  # its requests stay in vLLM's scheduler: see `vllm_patches.PATCHES`
            raise self._describe_failure("generating", error) from error

    def _generate(self, requests: Sequence[GenerationRequest], version: int) -> Iterator[Outcomes]:
        """Hand over all requests, then step vLLM and yield what is finished after each step."""
        # Hand every request to vLLM; what it refuses is known at once.
        pending: dict[str, GenerationRequest] = {}
        refused: list[FailedGroup] = []
        images = fetch_features([request.images for request in requests], timeout_s=FETCH_TIMEOUT_S)
        for request, features in zip(requests, images, strict=True):
            request_id = str(self._requests)
            self._requests += 1
            reason = self._add(request_id, request, features)
            if reason is None:
                pending[request_id] = request
            else:
                refused.append(FailedGroup(prompt_id=request.prompt_id, reason=reason))
        if refused:
            yield tuple(refused)

        # One step samples one token of every running completion.
        while pending:
            finished = [output for output in self._llm.llm_engine.step() if output.finished]
            if finished:
                yield tuple(self._make_group(pending.pop(out.request_id), out, version) for out in finished)

    def _add(self, request_id: str, request: GenerationRequest, features: ImageFeatures | None) -> str | None:
        """Hand one request to vLLM. Return the reason when it is refused."""
        from vllm.exceptions import VLLMError

        from rollout.inputs import make_engine_input

        try:
            prompt = make_engine_input(self._llm, request, features)
            self._llm.llm_engine.add_request(request_id, prompt, make_sampling_params(request))
        except (ValueError, VLLMError) as error:
            return f"the engine refused the prompt: {type(error).__name__}: {error}"
        return None

    def _make_group(self, request: GenerationRequest, output: Any, version: int) -> Group | FailedGroup:
        """Make the group of a finished request, a FailedGroup where vLLM has given one of its answers up."""
        outputs = sorted(output.outputs, key=lambda one: one.index)
        if given_up := sorted({str(one.finish_reason) for one in outputs} - set(FINISHED)):
            return FailedGroup(
                prompt_id=request.prompt_id, reason=f"the engine gave an answer up: it ended by {', '.join(given_up)}"
            )

        texts = self._detokenize(request, outputs)
        return Group(
            prompt_id=request.prompt_id,
            completions=tuple(_make_completion(one, text) for one, text in zip(outputs, texts, strict=True)),
            origin="sampled",
            seed=request.seed,
            engine_id=self._id,
            weights_version=version,
        )

    def _detokenize(self, request: GenerationRequest, outputs: Sequence[Any]) -> list[str]:
        """Return the text of each answer by vLLM's own detokenizer, which reads equal answers once."""
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        as_vllm_request: Any = SimpleNamespace(
            request_id=request.prompt_id,
            prompt_token_ids=list(request.token_ids),
            sampling_params=make_sampling_params(request),
        )
        tokenizer = self._llm.get_tokenizer()
        texts: dict[tuple[int, ...], str] = {}
        for one in outputs:
            ids = tuple(one.token_ids)
            if ids not in texts:
                reader = IncrementalDetokenizer.from_new_request(tokenizer, as_vllm_request)
                reader.update(list(ids), stop_terminated=one.finish_reason == "stop")
                texts[ids] = reader.get_next_output_text(finished=True, delta=False)
        return [texts[tuple(one.token_ids)] for one in outputs]

    def _abort_all(self) -> None:
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)

    def _describe_failure(self, doing: str, error: Exception) -> BrokenEngineError:
        return BrokenEngineError(
            f"engine {self._id} failed while {doing}",
            got="".join(traceback.format_exception(error)).strip(),
            remedy="the fleet replaces it; if every replacement fails alike, the cause is in the trace above",
        )


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


def _make_completion(output: Any, text: str) -> Completion:
    ids = tuple(output.token_ids)
    return Completion(
        token_ids=ids,
        logprobs=tuple(float(step[token].logprob) for token, step in zip(ids, output.logprobs, strict=True)),
        text=text,
        finish_reason=output.finish_reason,
    )
