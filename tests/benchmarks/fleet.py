"""The driver before 1 to 256 modelled engines: its CPU a group, how far the engines are from linear, dispatch, memory,
one straggler of eight, and how much of a step is hidden under a lag of one.

Fleet, reward pool, packing and record are the real ones, over real Ray. Engines are the real actor's streams, whose
vLLM is a clock. Many of them share a process: 256 processes would measure the machine.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from common.config.schema import Config
from common.data.image import store_picture
from common.types import Completion, Example, Group, Prompt, ScoredGroup, UnreadPicture
from rollout.fleet.batch import Batch
from rollout.fleet.crew import Crew
from rollout.fleet.fleet import RolloutFleet
from rollout.requests import training_requests
from rollout.reward_pool import RewardPool
from tests.benchmarks.report import emit, middle, table
from tests.helpers.modelled import Model, ModelledEngine, make_manifest

HOSTS = 4  # processes that the engines share
GROUP, TOKENS = 8, 16  # completions a group, tokens a completion
PROMPT = 264  # tokens of a prompt, a picture of 384 x 384 among them
GROUPS_EACH, MOST_GROUPS = 40, 2560  # of every engine in a step, and of all of them


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--engines", type=int, nargs="+", default=[1, 8, 64, 256])
    made.add_argument("--service", type=float, default=0.5, help="seconds that an engine takes for a group")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    with start_ray() as hosts:
        rows = [measure_scale(hosts, engines, arguments.service) for engines in arguments.engines]
        head = ["engines", "groups", "ms_a_group", "of_linear", "dispatch_p50_ms", "dispatch_p99_ms", "grown_mb"]
        print(table(head, [[row[name] for name in head] for row in rows]))
        straggler = measure_straggler(hosts)
        print(f"one of eight engines ten times slower: {straggler:.2f} of the ideal time")
        hidden = measure_overlap(hosts)
        print(f"lag 1: the longer of sampling and learning is {hidden:.3f} of a step")
        picture = measure_picture()
        print(f"a picture of 384 x 384 takes the driver {picture:.3f} ms")
    emit("fleet", {"scale": rows, "straggler": straggler, "overlap": hidden, "picture_ms": picture})
    return 0


# -- engines ---------------------------------------------------------------------------------------------------


class Engine(ModelledEngine):
    """Answers with groups of the usual size, and says when it got the request."""

    def _add(self, request_id: str, request: Any, features: Any) -> str | None:
        self._got = {**getattr(self, "_got", {}), request.prompt_id: time.monotonic()}
        return super()._add(request_id, request, features)

    def _make_group(self, request: Any, output: Any) -> Group:
        text = f"{self._got.pop(request.prompt_id)}"
        one = Completion(token_ids=tuple(range(TOKENS)), logprobs=(-0.5,) * TOKENS, text=text, finish_reason="stop")
        made = super()._make_group(request, output)
        assert isinstance(made, Group)
        return replace(made, completions=(one,) * request.sampling.n)


class Host:
    """A process of many engines."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def open(self, name: str, model: Model) -> None:
        self._engines[name] = Engine(model, name)

    def serve(self, name: str, *args: Any) -> Iterator[Any]:
        yield from self._engines[name].serve(*args)

    def call(self, name: str, method: str, args: Sequence[Any]) -> Any:
        return getattr(self._engines[name], method)(*args)


@dataclass(frozen=True, slots=True)
class Method:
    """A method of an engine as Ray has it: it may have options, and is called by `remote`."""

    host: Any
    engine: str
    name: str
    streams: bool = False

    def options(self, *, num_returns: Any = None, concurrency_group: Any = None) -> Method:
        return replace(self, streams=num_returns == "streaming")

    def remote(self, *args: Any) -> Any:
        if self.streams:
            return self.host.serve.options(num_returns="streaming").remote(self.engine, *args)
        return self.host.call.remote(self.engine, self.name, args)


@dataclass(frozen=True, slots=True)
class Handle:
    """An engine in a host, as the fleet handles an actor."""

    host: Any
    engine: str

    def __getattr__(self, name: str) -> Method:
        return Method(self.host, self.engine, name)


@contextmanager
def start_ray() -> Iterator[list[Any]]:
    """Start Ray and the hosts; yield them."""
    import ray

    kill = ray.kill
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}}
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:
        with mock.patch("ray.kill", lambda one, **more: None if isinstance(one, Handle) else kill(one, **more)):
            yield [ray.remote(Host).options(num_cpus=0, max_concurrency=1000).remote() for _ in range(HOSTS)]
    finally:
        ray.shutdown()


@contextmanager
def open_fleet(hosts: Sequence[Any], config: Config, model: Model) -> Iterator[RolloutFleet]:
    """Start a fleet whose engines live in the hosts, and publish version 0."""
    import ray

    def spawn(crew: Crew, member: Any) -> Handle:
        host = hosts[int(member.id.rpartition("-")[2]) % len(hosts)]
        ray.get(host.open.remote(member.id, model), timeout=60)
        return Handle(host, member.id)

    spec: Any = model
    with mock.patch.object(Crew, "_spawn", spawn):
        fleet = RolloutFleet(config, spec, on_event=lambda kind, **fields: None)
        try:
            fleet.ready()
            fleet.publish(make_manifest(0))
            yield fleet
        finally:
            fleet.close()


# -- what is measured ------------------------------------------------------------------------------------------


def make_config(engines: int, prompts: int) -> Config:
    rollout = {"engines": engines, "gpus_per_engine": 0, "cpus_per_engine": 0, "max_sequences": 8 * GROUP}
    return Config.model_validate(
        {
            "model": {"path": "modelled", "dtype": "float32"},
            "rollout": rollout | {"prompts_per_step": prompts, "group_size": GROUP, "max_completion_tokens": TOKENS},
            "learner": {"gpus_per_rank": 0},
            "cluster": {"device": "cpu"},
        }
    )


def make_prompts(count: int) -> list[Prompt]:
    """Make prompts, each with a picture of 384 x 384 as its file holds it: eight of them in all."""
    files = [draw_jpeg(number) for number in range(8)]
    pictures = [
        UnreadPicture(
            digest=f"{number}",
            picture=store_picture(data, resize=None, size=(384, 384)),
            text="?",
            row=f"train/{number}",
        )
        for number, data in enumerate(files)
    ]
    return [
        Prompt(
            example=Example(id=f"train/{row}", problem="What is it?", image=None, label="cat", columns={}),
            text_ids=tuple(range(60)),
            token_ids=tuple(range(PROMPT)),
            images=pictures[row % 8],
        )
        for row in range(count)
    ]


def measure_scale(hosts: Sequence[Any], engines: int, service_s: float) -> dict[str, Any]:
    """Sample, score, pack and record groups; return the driver's CPU of each, and how long all took."""
    import psutil

    from learner.driver.control.lookahead import AskedStep
    from learner.objective.records import Coefficients
    from learner.trainer.sent_step import SentStep

    config = make_config(engines, prompts=min(engines * GROUPS_EACH, MOST_GROUPS))
    prompts = make_prompts(config.rollout.prompts_per_step)
    by_id = {prompt.id: prompt for prompt in prompts}
    process, sizes = psutil.Process(), list[int]()
    latencies: list[float] = []
    with open_fleet(hosts, config, Model(service_s=service_s)) as fleet:
        pool = RewardPool(config.reward, config.data)
        pool.pids()
        steps = 4
        cpu, began = time.process_time(), time.monotonic()
        for step in range(steps):
            requests = training_requests(prompts, config.rollout, seed=1, step=step)
            asked = time.monotonic()
            scored: dict[str, ScoredGroup] = {}
            asked_step = AskedStep(number=step, drawn=(), batches=[fleet.ask(requests)])
            for outcome in pool.score(by_id, asked_step.take(fleet.take), more=asked_step.has_answer):
                assert isinstance(outcome, ScoredGroup)
                scored[outcome.prompt.id] = outcome
            sent = SentStep(config=config, coefficients=Coefficients.of(config))
            sent.add([scored[prompt.id] for prompt in prompts], last=True)
            latencies += list_first_dispatches(scored.values(), asked)
            sizes.append(process.memory_info().rss)
        groups = steps * len(prompts)
        cpu, seconds = time.process_time() - cpu, time.monotonic() - began
        pool.close()
    latencies.sort()
    return {
        "engines": engines,
        "groups": groups,
        "ms_a_group": 1e3 * cpu / groups,
        "of_linear": groups * service_s / engines / seconds,
        "dispatch_p50_ms": 1e3 * latencies[len(latencies) // 2],
        "dispatch_p99_ms": 1e3 * latencies[len(latencies) * 99 // 100],
        "grown_mb": (sizes[-1] - sizes[0]) / 2**20,
    }


def list_first_dispatches(scored: Any, asked: float) -> list[float]:
    """Return how long each engine waited for its first request of a step, in seconds."""
    first: dict[str, float] = {}
    for one in scored:
        got = float(one.group.completions[0].text)
        engine = one.group.engine_id
        first[engine] = min(first.get(engine, got), got)
    return [got - asked for got in first.values()]


def measure_straggler(hosts: Sequence[Any], service_s: float = 0.02) -> float:
    """Return how many times the ideal it takes eight engines to sample 400 groups, of which one is ten times slower."""
    config = make_config(8, prompts=400)
    requests = training_requests(make_prompts(400), config.rollout, seed=1, step=0)
    with open_fleet(hosts, config, Model(service_s=service_s, slow={"engine-3": 10.0})) as fleet:
        list(fleet.generate(requests[:32]))
        began = time.monotonic()
        assert len(list(fleet.generate(requests))) == 400
        seconds = time.monotonic() - began
    return seconds / (400 * service_s / 7.1)


def measure_overlap(hosts: Sequence[Any], steps: int = 20, learn_s: float = 1.0) -> float:
    """Return which share of a step the longer of sampling and learning is, where a step is asked one step ahead."""
    config = make_config(8, prompts=64)
    prompts = make_prompts(64)
    sampling_s = 64 * 0.12 / 8
    took: list[float] = []
    with open_fleet(hosts, config, Model(service_s=0.12)) as fleet:

        def ask(step: int) -> Batch:
            return fleet.ask(training_requests(prompts, config.rollout, seed=1, step=step))

        asked = [ask(0), ask(1)]
        for step in range(steps):
            began = time.monotonic()
            assert len(list(fleet.take(asked.pop(0)))) == 64
            threading.Event().wait(learn_s)
            fleet.publish(make_manifest(step + 1))
            asked.append(ask(step + 2))
            took.append(time.monotonic() - began)
    return max(sampling_s, learn_s) / middle(took[2:])


def measure_picture(count: int = 400) -> float:
    """Return the driver's CPU for reading a JPEG of 384 x 384 that is not at hand and making a prompt of it, in ms.

    What all rows of a set have in common is done before, as the check of a run does it: the row of each is read, its
    file is looked at, and its ids are made.
    """
    from common.config.schema import DataConfig
    from common.data.sources import load
    from common.models.prompts import PromptEncoder
    from learner.embedded.tokenizer import build_processor

    with TemporaryDirectory() as folder:
        for number in range(count):
            file = Path(folder) / "cat" / f"{number}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(draw_jpeg(number))
        data = DataConfig(path=folder, question="What is it?", eval_split=None, cache_mb=0, max_prompt_tokens=1024)
        processor = build_processor(["What is it?", "cat"], size_limit=512)
        source, encoder = load(data, split="train"), PromptEncoder(processor, data, reads=False)
        encoder.check(source)
        cpu = time.process_time()
        for index in range(count):
            assert isinstance(encoder.encode(source[index]).images, UnreadPicture)
        return 1e3 * (time.process_time() - cpu) / count


def draw_jpeg(number: int) -> bytes:
    """Make a picture of 384 x 384 that is smooth, as photos are."""
    import io

    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((384, 384)).save(file, "JPEG")
    return file.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
