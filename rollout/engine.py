"""One vLLM engine inside a Ray actor: requests in, groups of completions streamed out as they finish.

vLLM runs in this very process (no child to leak), and one thread loads and serves: no generation can fall between start
and finish of a weight update. Another thread takes what is sent meanwhile, and says how far the first one is.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import BrokenEngineError, DataError, EngineError
from common.lean_imports import settle_collector
from common.models.pictures import PictureReader
from common.object_store import fetch_features
from common.process import ThreadReport, describe_threads, end_with_raylet
from common.recorder import Recorder
from common.shared_folder import find_local
from common.storage.output import Place, WriteReport
from common.telemetry.actor import ActorTelemetry
from common.types import (
    FailedGroup,
    GenerationRequest,
    Group,
    ImageFeatures,
    LoadedWeights,
    UnreadPicture,
    WeightManifest,
)
from rollout.build import build_engine
from rollout.exchange.messages import Cancellation, DamagedUpdate, End, Outcomes, Sent, Submission, Update
from rollout.exchange.outputs import make_group, make_sampling_params
from rollout.spec import EngineInfo, EngineSpec
from rollout.vllm_usage import VllmUsage
from rollout.weight_loader import WeightLoader, receive_by_nccl, reset_caches
from rollout.weights import WeightReceiver

FETCH_TIMEOUT_S = 600.0  # for the image features of a batch, and for each piece of the model


@dataclass(slots=True)
class OpenStream:
    """A stream that is being served."""

    number: int
    received: int  # requests
    end: int | None = None  # of its requests; None: more may come
    newest: WeightManifest | None = None  # newer weights, not loaded yet


class RolloutEngine:
    """One engine as a Ray actor. It starts with the checkpoint's weights, and serves once a version is loaded."""

    def __init__(self, spec: EngineSpec, engine_id: str) -> None:
        end_with_raylet()
        started = time.monotonic()
        self._spec = spec
        self._id = engine_id
        model_path = find_local(spec.model_path, timeout_s=FETCH_TIMEOUT_S)
        self._llm = build_engine(spec, model_path=model_path)
        self._pictures = PictureReader(spec.model.model_copy(update={"path": model_path}), spec.data)
        self._begin_serving()
        self._usage = VllmUsage(self._llm)
        self._telemetry = ActorTelemetry(spec.reporting, engine_id, read=self._usage.read)
        self._recorder = Recorder()
        self._receiver = WeightReceiver()
        self._loader = WeightLoader(self._llm)
        settle_collector()
        self._startup_seconds = time.monotonic() - started
        self._telemetry.log("up", step=None, seconds=round(self._startup_seconds, 3))

    def _begin_serving(self) -> None:
        """Serve nothing yet, and report nothing."""
        self._telemetry = ActorTelemetry(None, self._id)
        self._version: int | None = None  # None: nothing is served
        self._requests = 0  # handed to vLLM so far: the next one's name
        self._running: dict[str, GenerationRequest] = {}  # by vLLM's name of it
        self._inbox: queue.SimpleQueue[Sent] = queue.SimpleQueue()  # filled by another thread
        self._steps = 0

    def info(self) -> EngineInfo:
        """Return the facts of this engine; an answer means that it is up."""
        return EngineInfo(engine_id=self._id, pid=os.getpid(), startup_seconds=self._startup_seconds)

    def version(self) -> int | None:
        """Return the version of the weights it would sample with; None before the first load."""
        return self._version

    def load(self, manifest: WeightManifest) -> LoadedWeights:
        """Replace every weight by those of the manifest, reset the caches, and return what is served now.

        A manifest without buckets (`rollout.fleet.fleet.OWN_WEIGHTS`) leaves the weights the engine started with.

        Raises:
            EngineError: the bytes do not match their checksum (the old version is still served).
            BrokenEngineError: vLLM could not take them; nothing is served any more.
        """
        began = time.monotonic()
        with self._telemetry.busy:
            loaded = self._load(manifest)
        self._telemetry.log("weights loaded", step=loaded.version, seconds=round(time.monotonic() - began, 4))
        return loaded

    def _load(self, manifest: WeightManifest) -> LoadedWeights:
        # Bytes that are damaged are refused here, while the old version is still served.
        keep_vision = manifest.vision_unchanged and self._version is not None
        received = None if manifest.by_nccl else self._receiver.receive(manifest, towers=not keep_vision)

        self._version = None  # half-loaded weights must never serve
        note = None
        try:
            if received is None:
                receive_by_nccl(self._llm, manifest)
            elif manifest.buckets:
                note = self._loader.load(received)
            if manifest.buckets:
                reset_caches(self._llm, keep_image_features=keep_vision, running=bool(self._running))
        except Exception as error:
            raise self._describe_failure("loading weights", error) from error

        self._llm.llm_engine.set_weight_version(str(manifest.version))
        self._version = manifest.version
        checksum = received.checksum if received and manifest.buckets else None
        return LoadedWeights(version=manifest.version, note=note, checksum=checksum)

    def start_profile(self) -> None:
        """Record what this process does from now on."""
        self._recorder.start()

    def stop_profile(self, place: Place) -> WriteReport:
        """Write what was recorded to `place`, under this engine's name."""
        return self._recorder.stop(place, self._id)

    def join(self, init_info: Mapping[str, Any]) -> None:
        """Enter the NCCL group that the learner's rank 0 has opened; return when every engine is in it."""
        self._llm.collective_rpc("init_weight_transfer_engine", args=(dict(init_info),))

    def submit(self, stream: int, requests: Sequence[GenerationRequest]) -> None:
        """Hand requests to a stream, which may be running or not yet begun."""
        self._inbox.put(Submission(stream=stream, requests=tuple(requests)))

    def cancel(self, stream: int, prompt_ids: Sequence[str]) -> None:
        """Drop requests of a stream that nobody waits for any more."""
        self._inbox.put(Cancellation(stream=stream, prompt_ids=tuple(prompt_ids)))

    def update(self, stream: int, manifest: WeightManifest) -> None:
        """Let a stream go on with newer weights. They are loaded between two of vLLM's steps; see `_update`."""
        self._inbox.put(Update(stream=stream, manifest=manifest))

    def finish(self, stream: int, sent: int) -> None:
        """Let a stream end once it has answered or dropped all of the `sent` requests."""
        self._inbox.put(End(stream=stream, sent=sent))

    def count_steps(self) -> int:
        """Return how often it got on with something; a count that stands still is an engine that hangs."""
        return self._steps

    def describe_threads(self) -> ThreadReport:
        """Return where every thread of this process is."""
        return describe_threads()

    def hold_lifeline(self) -> None:
        """Never return: Ray ends the call when the process is gone, and so tells whoever waits for it."""
        threading.Event().wait()

    def serve(self, version: int, stream: int, first: Sequence[GenerationRequest] = ()) -> Iterator[Outcomes]:
        """Yield groups as they finish, several at a time when they finish together, until the stream is told to end.

        A request vLLM refuses becomes a FailedGroup; the others go on.

        Args:
            version: of the weights that is to be sampled from.
            stream: its number, by which further requests find it.
            first: what it begins with.

        Raises:
            EngineError: this engine does not hold that version.
            BrokenEngineError: vLLM failed in a step; nothing is served any more.
        """
        if self._version != version:
            raise EngineError(
                f"engine {self._id} was asked for weights it does not hold",
                got=f"version {self._version}, asked for {version}",
                remedy="load that version first; the fleet does so for every engine it serves from",
            )
        try:
            yield from self._serve(stream, first)
        except GeneratorExit:
            self._abort(self._running)
            raise
        except Exception as error:
            self._version = None  # its requests stay in vLLM's scheduler: see `vllm_patches.PATCHES`
            raise self._describe_failure("generating", error) from error

    def _serve(self, number: int, first: Sequence[GenerationRequest]) -> Iterator[Outcomes]:
        """Step vLLM, and yield what is finished after each step; between steps look for what was sent."""
        stream = OpenStream(number=number, received=len(first))
        if refused := self._begin(first):
            yield refused
        while stream.end is None or stream.received < stream.end or self._running:
            for sent in self._receive(number, wait=not self._running):
                if refused := self._heed(sent, stream):
                    yield refused
            if stream.newest:
                yield (self._update(stream.newest),)
                stream.newest = None

            # One step samples one token of every running completion.
            if self._running:
                self._steps += 1
                with self._telemetry.busy:
                    finished = [output for output in self._llm.llm_engine.step() if output.finished]
                if finished:
                    yield tuple(self._make_group(self._running.pop(out.request_id), out) for out in finished)

    def _heed(self, sent: Sent, stream: OpenStream) -> tuple[FailedGroup, ...]:
        """Do what was sent, or note it where it waits for others. Return the requests that vLLM refuses."""
        if isinstance(sent, Submission):
            stream.received += len(sent.requests)
            return self._begin(sent.requests)
        if isinstance(sent, Cancellation):
            self._abort([name for name, request in self._running.items() if request.prompt_id in sent.prompt_ids])
        elif isinstance(sent, Update):
            stream.newest = sent.manifest
        else:
            stream.end = sent.sent
        return ()

    def _update(self, manifest: WeightManifest) -> LoadedWeights | DamagedUpdate:
        """Load newer weights while requests are running.

        What is running goes on with its next token. Keys and values are computed anew: they are the new weights' own,
        for all that was said before. So each log-prob is that of one version, which law 1 holds the learner to.
        """
        self._steps += 1
        try:
            return self.load(manifest)
        except BrokenEngineError:
            raise
        except EngineError as error:
            return DamagedUpdate(version=manifest.version, why=str(error.got))
        finally:
            self._steps += 1

    def _make_group(self, request: GenerationRequest, output: Any) -> Group | FailedGroup:
        return make_group(self._llm, request, output, engine_id=self._id)

    def _receive(self, stream: int, *, wait: bool) -> Iterator[Sent]:
        """Yield what was sent to a stream; with `wait` wait for the first. What older streams left is passed over."""
        while True:
            try:
                sent = self._inbox.get(block=wait)
            except queue.Empty:
                return
            if sent.stream == stream:
                yield sent
                wait = False

    def _begin(self, requests: Sequence[GenerationRequest]) -> tuple[FailedGroup, ...]:
        """Hand requests to vLLM. Return those that it refuses, which is known at once."""
        refused: list[FailedGroup] = []
        images = fetch_features([request.images for request in requests], timeout_s=FETCH_TIMEOUT_S)
        for request, features in zip(requests, images, strict=True):
            self._steps += 1
            request_id = str(self._requests)
            self._requests += 1
            reason = self._add(request_id, request, features)
            if reason is None:
                self._running[request_id] = request
            else:
                refused.append(FailedGroup(prompt_id=request.prompt_id, reason=reason))
        return tuple(refused)

    def _add(
        self, request_id: str, request: GenerationRequest, images: ImageFeatures | UnreadPicture | None
    ) -> str | None:
        """Hand one request to vLLM. Return the reason when it is refused."""
        from vllm.exceptions import VLLMError

        from rollout.exchange.inputs import make_engine_input

        try:
            prompt = make_engine_input(self._llm, request, self._pictures.open(images))
            self._llm.llm_engine.add_request(request_id, prompt, make_sampling_params(request))
        except (ValueError, VLLMError) as error:
            return f"the engine refused the prompt: {type(error).__name__}: {error}"
        except DataError as error:
            return f"{error.what}: {error.got}"
        return None

    def _abort(self, names: Iterable[str]) -> None:
        """Drop running requests, by vLLM's names of them."""
        names = list(names)
        for name in names:
            del self._running[name]
        self._llm.llm_engine.abort_request(names)

    def _describe_failure(self, doing: str, error: Exception) -> BrokenEngineError:
        self._telemetry.log(f"failed while {doing}", step=self._version, level=logging.ERROR, why=repr(error))
        return BrokenEngineError(
            f"engine {self._id} failed while {doing}",
            got="".join(traceback.format_exception(error)).strip(),
            remedy="the fleet replaces it; if every replacement fails alike, the cause is in the trace above",
        )
