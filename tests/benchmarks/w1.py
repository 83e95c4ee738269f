"""W1, the workload all speed is stated for: a random Qwen2-VL of 48 M parameters (its tied head counted), an image of
384 x 384 pixels (196 visual tokens), a prompt of 264 tokens, 2 prompts x G = 8, exactly 8 new tokens, beta 0.04.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.schema import Config
from tests.benchmarks.report import THREADS

if TYPE_CHECKING:
    from common.models.prompts import PromptEncoder
    from common.types import Prompt
    from learner.driver.preflight.run_inputs import RunInputs
    from learner.driver.run import Run

P, G, C, BETA, LR = 2, 8, 8, 0.04, 1e-5
SIZE, PROMPT = 384, 264  # pixels a side, 196 tokens; tokens of the prompt with them
VOCABULARY = 8192
LABELS = ("bird", "boat")
PICTURES = 32  # of each label
TEXT: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
}
VISION: dict[str, Any] = {"depth": 8, "embed_dim": 320, "hidden_size": 512, "num_heads": 8, "mlp_ratio": 4}


def home() -> Path:
    """Folder with `model` and `pictures`, made by the first call; another workload is another folder."""
    recipe = json.dumps([TEXT, VISION, VOCABULARY, LABELS, PICTURES, SIZE, 1])
    folder = Path(tempfile.gettempdir()) / f"rollcall-w1-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            made = Path(scratch) / "made"
            _save_model(made / "model")
            _save_pictures(made / "pictures")
            made.rename(folder)
    return folder


def words() -> list[str]:
    """Made-up words, each one token of the vocabulary."""
    consonants, vowels = "bcdfghjklmnpqrstvwxz", "aeiou"
    return [f" {''.join(letters)}" for letters in itertools.product(consonants, vowels, consonants, vowels)]


def _save_model(folder: Path) -> None:
    import torch
    import transformers

    from common.labels.candidates import with_candidates
    from common.models.prompts import TEMPLATES
    from learner.embedded.tokenizer import build_processor, token_ids

    asked = with_candidates("What", LABELS)
    system = "system\nYou are a helpful assistant.<|im_end|>\nuser\n<|vision_end|>"
    texts = [system + TEMPLATES["no_think"].format(problem=asked), "assistant\n", *LABELS]
    processor = build_processor(texts, size_limit=768)
    tokenizer = processor.tokenizer
    tokenizer.add_tokens(words()[: VOCABULARY - len(tokenizer)])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config: Any = transformers.Qwen2VLConfig(
            text_config={**TEXT, **ends, "vocab_size": VOCABULARY, "bos_token_id": None},
            vision_config=VISION,
            tie_word_embeddings=True,
            dtype="float32",
            **token_ids(tokenizer),
        )
        model: Any = transformers.Qwen2VLForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(**ends)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _save_pictures(folder: Path) -> None:
    """Noise in blocks, another in every picture."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for label, number in itertools.product(LABELS, range(PICTURES)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIZE, SIZE)).save(folder / label / f"{number:02}.png")


def question(length: int = PROMPT, *, size: int = SIZE) -> str:
    """One that makes a prompt of `length` tokens, its picture of `size` x `size` pixels included.

    Raises ValueError when the picture and the template alone take more.
    """
    from common.labels.candidates import with_candidates
    from common.models.prompts import TEMPLATES

    found = processor()
    visual = side(size) ** 2

    def tokens(count: int) -> int:
        text = TEMPLATES["no_think"].format(problem=with_candidates(_asked(count), LABELS))
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat = [{"role": "user", "content": content}]
        rendered = found.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return len(found.tokenizer(rendered)["input_ids"]) - 1 + visual

    least = tokens(1)
    if least > length:
        raise ValueError(f"a prompt with a picture of {size} pixels has at least {least} tokens")
    return _asked(1 + length - least)


def side(size: int) -> int:
    """Visual tokens along a side of `size` pixels: the processor scales it to the nearest multiple of 28."""
    return round(size / 28)


def _asked(count: int) -> str:
    return "What" + "".join(words()[:count])


@cache
def processor() -> Any:
    """W1's own."""
    from common.config.schema import ModelConfig
    from common.models.processor import load_processor

    return load_processor(ModelConfig(path=str(home() / "model"), dtype="float32"))


def local_encoder(what: RunInputs) -> PromptEncoder:
    """As the run's, but image features stay in this process, which needs no Ray."""
    from common.models.processor import load_processor
    from common.models.prompts import PromptEncoder

    config = what.config
    return PromptEncoder(load_processor(config.model.model_copy(update={"path": what.model.path})), config.data)


def prompt(length: int = PROMPT, *, size: int = SIZE, number: int = 0) -> Prompt:
    """One of `length` tokens with a picture of noise of `size` x `size` pixels."""
    import numpy as np

    from common.config.schema import DataConfig
    from common.labels.candidates import with_candidates
    from common.models.prompts import PromptEncoder
    from common.types import Example

    image = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    problem = with_candidates(question(length, size=size), LABELS)
    encoder = PromptEncoder(processor(), DataConfig(path="unused"))
    made = encoder.encode(Example(id=f"w1/{number}", problem=problem, image=image, label=LABELS[0], columns={}))
    if len(made.token_ids) != length:
        raise ValueError(f"a prompt of {len(made.token_ids)} tokens instead of {length}")
    return made


def config(**changes: dict[str, Any] | Any) -> Config:
    """A run on W1. `changes` are of whole values or of keys of a section: `config(model={"dtype": "bfloat16"})`."""
    settings: dict[str, Any] = {
        "name": "w1",
        "steps": 4,
        "model": {"path": str(home() / "model"), "dtype": "float32"},
        "data": {
            "path": str(home() / "pictures"),
            "eval_split": None,
            "image_size": SIZE,
            "question": question(),
            "max_prompt_tokens": 1024,
        },
        "rollout": {
            "prompts_per_step": P,
            "group_size": G,
            "max_completion_tokens": C,
            "cpus_per_engine": 0.5,
            "gpus_per_engine": 0,
        },
        "reward": {"functions": {f"{__name__}:spelling": 1.0}},
        "learner": {"lr": LR, "beta": BETA, "zero_stage": 0, "cpus_per_rank": 0.5, "gpus_per_rank": 0},
        "checkpoint": {"every": 0, "export": False},
        "tracking": {"samples_every": 0},
        "cluster": {"device": "cpu", "threads": THREADS, "address": "local"},
    }
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    if settings["model"]["dtype"] == "bfloat16":  # one rank has nothing to split; but masters come with ZeRO
        settings["learner"] = {**settings["learner"], "zero_stage": max(1, settings["learner"]["zero_stage"])}
    return Config.model_validate(settings)


def spelling(completions: Sequence[str], **_columns: Any) -> list[float]:
    """Worth nothing, cheap and different within a group."""
    return [float(len(set(text)) % 5) for text in completions]


def read_inputs(wanted: Config) -> RunInputs:
    """Read what a run of it needs, with the end of turn banned: every completion is C tokens long."""
    from common.models.processor import eos_token_ids
    from learner.driver.preflight.run_inputs import run_preflight

    found = run_preflight(wanted, say=lambda line: None)
    banned = tuple(sorted({*found.model.banned, *eos_token_ids(wanted.model)}))
    return dataclasses.replace(found, model=dataclasses.replace(found.model, banned=banned))


@contextmanager
def running(what: RunInputs) -> Iterator[Run]:
    """A run with everything up and the first weights published, as `learner.main` has it."""
    from common.command import Grace
    from learner.driver.open_run import open_run
    from learner.driver.preflight.start import RunStart
    from learner.storage.resume import open_checkpoints
    from learner.storage.run_folder import RunFolder

    os.environ |= {"OMP_NUM_THREADS": str(THREADS)}
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as scratch:
        wanted = what.config.model_copy(update={"run_dir": Path(scratch) / "run"})
        what = dataclasses.replace(what, config=wanted)
        with closing(RunFolder.open(wanted, now=datetime.now().astimezone())) as folder:
            start = RunStart(inputs=what, folder=folder, store=open_checkpoints(wanted, folder), point=None)
            with open_run(start, started=time.monotonic(), grace=Grace(20.0)) as run:
                yield run
