"""A model folder in vLLM as it is; `python -m tests.helpers.vllm_alone FOLDER ROWS` prints its answers to digits."""

from __future__ import annotations

import os
import sys

from common.config.schema import Config, DataConfig, ModelConfig
from common.data.sources import load
from common.models.processor import load_processor
from common.models.prompts import PromptEncoder
from rollout.engine import RolloutEngine
from rollout.fleet.fleet import OWN_WEIGHTS
from rollout.requests import greedy_requests
from rollout.spec import engine_spec
from tests.helpers.engines import generate

DIGITS = DataConfig(path="embedded:digits", image_size=56, max_prompt_tokens=64)


def main(folder: str, rows: int) -> None:
    settings = {
        "model": {"path": folder, "dtype": "float32"},
        "data": DIGITS.model_dump(),
        "rollout": {"gpus_per_engine": 0, "max_completion_tokens": 4},
        "learner": {"gpus_per_rank": 0},
        "cluster": {"device": "cpu"},
    }
    config = Config.model_validate(settings)
    spec = engine_spec(config, model_path=folder, banned=())
    os.environ.update(spec.environment())
    engine = RolloutEngine(spec, "alone")
    engine.load(OWN_WEIGHTS)
    source, encoder = load(DIGITS, split="test"), PromptEncoder(load_processor(ModelConfig(path=folder)), DIGITS)
    requests = greedy_requests([encoder.encode(source[row]) for row in range(rows)], config.rollout)
    answers = {group.prompt_id: group for groups in generate(engine, requests, 0) for group in groups}
    for request in requests:
        print("answer:", answers[request.prompt_id].completions[0].text)  # type: ignore[union-attr]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
