"""`embedded:tiny`: a real Qwen2-VL of about 0.6 M parameters, made here in seconds instead of downloaded.

Its vocabulary is made of the prompts and labels of the data set. A few supervised steps teach it to answer in the right
format, not to be right: reinforcement learning starts there. A digits prompt takes 17 tokens, 4 of them visual. An
answer takes two, the label and the end of turn, or six with a thought.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common.command import say
from common.config.foreign_text import parse_json
from common.config.schema import DataConfig
from common.data.image import read_pixels
from common.errors import ModelError
from common.labels.answers import Mode
from common.shared_folder import cache_home
from common.storage.output import follow_umask
from common.types import Example, Prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from common.data.sources import ExampleSource
    from common.models.prompts import PromptEncoder

DIGITS = DataConfig(path="embedded:digits", image_size=56)
SEEN = {(DIGITS.path, "base_train"): ("base_train", "new_train")}
TWO_QUESTIONS = 7  # more steps where two questions are told apart: without, the model answers one class to both
VOCABULARY_MODES = ("no_think", "think")
LABEL = "{label}"
_THOUGHT = "<think>it looks like {label}</think>\n<answer>{label}</answer>"  # one that its answer can be read from
FORMS: Mapping[Mode, tuple[str, ...]] = {  # what the warm-up teaches to say in each mode, in turn
    "no_think": (LABEL,),
    "think": (_THOUGHT,),
    "think_after_answer": ("<answer>{label}</answer>\n<reason>it looks like {label}</reason>",),
    "adaptive": (_THOUGHT, "<answer>{label}</answer>"),
}
MORE_STEPS: Mapping[Mode, int] = {"no_think": 0, "think": 13, "think_after_answer": 6, "adaptive": 13}  # more to say
MANIFEST = "built.sha256"  # no .json: an export takes those over from its base model
RECIPE: dict[str, Any] = {
    "version": 2,  # raise it when the code below changes what is built
    "seed": 4,
    "vocabulary_limit": 768,  # digits, both modes, fill 475
    # Two more steps and the model is half right; over a longer ramp it is as right but ends fewer answers properly.
    "warm_up": {"steps": 27, "batch": 32, "lr": 2e-3, "ramp": 10, "betas": (0.9, 0.99), "grad_clip": 1.0},
    "text": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    },
    "vision": {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 4, "mlp_ratio": 2},
}


def ensure_model(cache_dir: Path | None = None, data: DataConfig = DIGITS) -> Path:
    """Return the folder of the model for `data.split` and its mode, in Hugging Face layout.

    The first call builds it, later ones find it. For the base half of the digits it is made of both halves: a
    pretrained model has seen what its users call new.

    Builds on one machine are equal to the last bit. So any number of processes may call this at once, and a folder
    that lost a file or a byte is made whole again.

    Raises:
        ModelError: the cache cannot be written.
    """
    from common.data.sources import load

    sources = [load(data, split=split) for split in SEEN.get((data.path, data.split), (data.split,))]
    examples = _Rows(sources)
    home = (cache_dir or cache_home()) / f"tiny-{_fingerprint(examples, data)}"
    if _is_sound(home):
        with suppress(OSError):  # one of before was for its owner alone
            follow_umask(home)
        return home
    say("making the embedded model, once: a few seconds")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as scratch:
            built = Path(scratch) / "model"
            build_model(built, examples, data)
            _install(built, home)
    except OSError as error:
        raise ModelError(
            "the embedded model cannot be written to its cache",
            got=f"{home.parent}: {error.strerror or error}",
            remedy="free space there, point XDG_CACHE_HOME at a folder you can write, or set model.path to a model",
        ) from error
    return home


class _Rows(Sequence[Example]):
    """The rows of several splits, one after the other; pictures are decoded as they are asked for, not kept."""

    def __init__(self, sources: Sequence[ExampleSource]) -> None:
        self._places = [(source, row) for source in sources for row in range(len(source))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        source, row = self._places[index]
        return source[row]


def build_model(folder: Path, examples: Sequence[Example], data: DataConfig) -> None:
    """Write a Qwen2-VL that answers `examples` with their labels, in the format of the data's mode and mostly wrongly.

    The same examples give the same bytes on one machine, whatever the threads and random states of the process.
    """
    import torch
    from transformers import GenerationConfig, Qwen2VLForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    from common.models.prompts import PromptEncoder
    from learner.embedded.tokenizer import build_processor

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers brings DeepSpeed in, which looks for a GPU aloud
    processor = build_processor(_texts(examples, data), size_limit=RECIPE["vocabulary_limit"])
    tokenizer = processor.tokenizer
    encoder = PromptEncoder(processor, data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of additions, hence the last bits, would follow their number
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RECIPE["seed"])
            model = Qwen2VLForConditionalGeneration(_config(tokenizer))
            _warm_up(model, tokenizer, encoder, examples, data)
    finally:
        torch.set_num_threads(threads)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends)
    disable_progress_bar()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    follow_umask(folder)


def _texts(examples: Sequence[Example], data: DataConfig) -> Iterator[str]:
    """Yield the texts of the vocabulary: prompts of both modes and of the data's own, and the pieces of answers.

    No prompt takes more tokens for the presence of the others.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    from common.models.prompts import messages
    from learner.embedded.tokenizer import CHAT_TEMPLATE

    for example in {example.problem: example for example in examples}.values():
        chats = [messages(example, mode) for mode in VOCABULARY_MODES]
        if not _is_plain(data):
            chats.append(messages(example, data.mode, data.template))
        yield from render_jinja_template(chats, chat_template=CHAT_TEMPLATE, add_generation_prompt=True)[0]
    yield from sorted({example.label for example in examples})
    yield from ("<think>", "</think>", "<answer>", "</answer>")
    yield from _pieces(data.mode)


def _pieces(mode: Mode) -> list[str]:
    """List the texts around the labels. The end of an answer is a token: candidates are scored up to there."""
    ends = re.compile(rf"{re.escape(LABEL)}|(?<=</answer>)")
    return [piece for form in FORMS[mode] for piece in ends.split(form) if piece]


def _is_plain(data: DataConfig) -> bool:
    """Say whether vocabulary and warm-up are those of no-think mode in its own wording."""
    return data.mode == "no_think" and data.template is None


def _more_steps(data: DataConfig) -> int:
    """Return the steps of warm-up that this data needs beside the recipe's."""
    return MORE_STEPS[data.mode] + TWO_QUESTIONS * ((data.path, data.split) in SEEN)


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    from transformers import Qwen2VLConfig

    from learner.embedded.tokenizer import token_ids

    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Qwen2VLConfig(
        text_config={**RECIPE["text"], **ids, "bos_token_id": None},
        vision_config=RECIPE["vision"],
        tie_word_embeddings=True,
        dtype="float32",
        **token_ids(tokenizer),
    )


def _warm_up(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    encoder: PromptEncoder,
    examples: Sequence[Example],
    data: DataConfig,
) -> None:
    """Train a few supervised steps on right answers, said in each form of the mode in turn."""
    import torch

    plan = RECIPE["warm_up"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan["lr"], betas=plan["betas"], weight_decay=0.0)
    ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / plan["ramp"]))
    model.train()
    for _ in range(plan["steps"] + _more_steps(data)):
        drawn = [examples[row] for row in torch.randint(len(examples), (plan["batch"],)).tolist()]
        said = [form.replace(LABEL, example.label) for form, example in zip(cycle(FORMS[data.mode]), drawn)]
        answers = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(said)["input_ids"]]
        batch = _batch([encoder.encode(example) for example in drawn], answers, tokenizer)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan["grad_clip"])
        optimizer.step()
        ramp.step()


def _batch(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast
) -> dict[str, torch.Tensor]:
    """Return the inputs (rows, T + C), padded on the right. Only answer tokens have a label, so only they train."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from learner.embedded.tokenizer import token_ids

    rows = [torch.tensor([*prompt.token_ids, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    labels = ids.clone()
    mask = torch.zeros_like(ids)
    for row, (prompt, whole) in enumerate(zip(prompts, rows, strict=True)):
        mask[row, : len(whole)] = 1
        labels[row, : len(prompt.token_ids)] = -100
    seen = [prompt.features for prompt in prompts if prompt.features]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels.masked_fill(mask == 0, -100),
        **{
            name: torch.cat([torch.from_numpy(features[name]) for features in seen])
            for name in ("pixel_values", "image_grid_thw")
            if seen
        },
        "mm_token_type_ids": (ids == token_ids(tokenizer)["image_token_id"]).int(),
    }


def _fingerprint(examples: Sequence[Example], data: DataConfig) -> str:
    """Return twelve hex digits over all that decides the bytes of a build: recipe, texts and pictures."""
    from common.models import prompts
    from learner.embedded.tokenizer import CHAT_TEMPLATE

    templates = {mode: prompts.TEMPLATES[mode] for mode in VOCABULARY_MODES}
    wording = data.template or prompts.TEMPLATES[data.mode]
    own: list[Any] = [] if _is_plain(data) else [wording, _pieces(data.mode), MORE_STEPS[data.mode]]
    if any(example.image is None for example in examples):
        own.append(prompts.SYSTEM)
    if (data.path, data.split) in SEEN:
        own.append(TWO_QUESTIONS)
    content = hashlib.sha256(json.dumps([RECIPE, templates, CHAT_TEMPLATE, *own], sort_keys=True).encode())
    for example in examples:
        content.update(json.dumps([example.problem, example.label]).encode())
        if example.image is not None:
            pixels = read_pixels(example.image)
            content.update(repr(pixels.shape).encode() + pixels.tobytes())
    return content.hexdigest()[:12]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_sound(folder: Path) -> bool:
    """Say whether every file is there as it was built."""
    try:
        manifest: dict[str, str] = parse_json((folder / MANIFEST).read_bytes())
        return all(_digest(folder / name) == digest for name, digest in manifest.items())
    except Exception:  # noqa: BLE001  # any file of a cache may be damaged
        return False


def _install(built: Path, home: Path) -> None:
    """Move a finished build to its place; no process ever finds half of one."""
    manifest = {path.name: _digest(path) for path in sorted(built.iterdir())}
    (built / MANIFEST).write_text(json.dumps(manifest, indent=1))
    try:
        built.rename(home)
    except OSError:
        if _is_sound(home):  # another process was first
            return
        for path in sorted(built.iterdir()):  # broken: each file is replaced by its equal or its original, atomically
            path.replace(home / path.name)
