"""Every recipe is accepted with the data and models it names, says what CLS-RL's scripts do, and fits its machine."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from common.config import cli
from common.config.schema import Config
from common.labels.answers import is_right
from learner.driver.parity_probe import LARGEST, MEAN
from tests.helpers.dry_runs import LABELS, ROWS, SETS
from tests.helpers.jobs import ROOT
from tests.helpers.pictures import draw_shapes

RECIPES = ROOT / "deploy/recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
README = (RECIPES / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)[3:] for line in re.findall(r"^python -m learner.main .*$", README, re.MULTILINE)
]
PLANS = ("cars-think", "one-gpu-lora")
EPOCHS = {name: {"imagenet": 10, "sun": 25, "eurosat": 100}.get(name, 50) for name in SETS}
GPUS = {
    name: 8.0 for name in NAMES if name not in ("folder", "laptop", "one-gpu-lora") and not name.startswith("digits")
}


def lines() -> dict[str, list[str]]:
    """Every command line of this file by a name of its own."""
    return (
        {name: ["--config", str(RECIPES / f"{name}.yaml"), "--dry-run"] for name in NAMES}
        | {f"plan {name}": ["--config", str(RECIPES / f"{name}.yaml"), "--plan"] for name in PLANS}
        | {f"README {number}": [*words, "--dry-run"] for number, words in enumerate(COMMANDS)}
    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """What each command line answers: {"code", "out", "err"}."""
    home, place = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("here")
    draw_shapes(place / "data/my-images", each=10)
    (place / "deploy").symlink_to(ROOT / "deploy")
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.dry_runs", str(home)],
        input=json.dumps(list(lines().values())),
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (place / "runs").exists()
    return dict(zip(lines(), json.loads(done.stdout.splitlines()[-1]), strict=True))


def config(name: str) -> Config:
    return cli.parse(["--config", str(RECIPES / f"{name}.yaml")]).config


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_accepted(name: str, answers: Mapping[str, Mapping[str, Any]]) -> None:
    answer = answers[name]
    assert answer["code"] == 0, answer["err"]
    assert "nothing was started" in answer["out"]
    if name in GPUS:
        assert f"{GPUS[name]:g} GPU" in answer["out"], "a machine of 8 GPUs, all of them used"
        assert config(name).learner.ranks + config(name).rollout.min_engines == GPUS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("think", [False, True])
def test_the_eleven_sets_are_those_of_cls_rl(name: str, think: bool, answers: Mapping[str, Mapping[str, Any]]) -> None:
    recipe = f"{name}-think" if think else name
    made = config(recipe)
    assert made.name == recipe
    assert made.model.path == "Qwen/Qwen2-VL-2B-Instruct" and made.model.dtype == "bfloat16"
    assert (made.data.path, made.data.split, made.data.image_size) == (f"afdsafas/{name}-4shot-fewshot", "train", 384)
    assert made.data.max_prompt_tokens == (2048 if name == "cars" else 1024)
    assert made.data.mode == ("think" if think else "no_think")
    assert made.reward.functions == ({"accuracy": 1.0, "format": 1.0} if think else {"accuracy": 1.0})
    rollout, learner = made.rollout, made.learner
    assert (rollout.prompts_per_step, rollout.group_size, rollout.max_completion_tokens) == (16, 4, 1024)
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1, 1, 0)
    assert (learner.zero_stage, learner.lr, learner.beta, learner.schedule) == (3, 1e-6, 0.04, "linear")
    assert learner.warmup_steps == 0
    steps = math.ceil(ROWS * EPOCHS[name] / 16)
    assert f"{ROWS} rows to learn from, 0 held out, {len(LABELS)} labels" in answers[recipe]["out"]
    assert f"epochs: {EPOCHS[name]} of them are {steps} steps of 16 prompts" in answers[recipe]["out"]


@pytest.mark.parametrize("name", NAMES)
def test_a_gap_stops_the_run_of_every_recipe(name: str) -> None:
    """By limits that the recipe itself says, at most those of its dtype; and where they stand a comment says why."""
    made = config(name)
    learner, dtype = made.learner, made.model.dtype
    assert learner.max_logprob_gap is not None and learner.max_logprob_gap <= LARGEST[dtype]
    assert dtype == "float32" or (learner.mean_logprob_gap is not None and learner.mean_logprob_gap <= MEAN[dtype])
    for line in (RECIPES / f"{name}.yaml").read_text().splitlines():
        assert "logprob_gap:" not in line or "#" in line


@pytest.mark.parametrize("name", SETS)
def test_the_longest_group_without_thinking_fits_a_pack(name: str) -> None:
    made = config(name)
    answer = 32  # tokens; no label is that long
    group = made.data.max_prompt_tokens + made.rollout.group_size * answer
    assert group <= made.learner.tokens_per_pack


@pytest.mark.slow
def test_what_it_takes_fits_the_machine(answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Gigabytes at the highest of a rank and of an engine: GPUs of their own; then one of 24 GB for both."""
    for name, limits in (("cars-think", (40, 40)), ("one-gpu-lora", (0.6 * 22, 0.4 * 22))):
        assert answers[f"plan {name}"]["code"] == 0, answers[f"plan {name}"]["err"]
        printed = answers[f"plan {name}"]["out"]
        assert "2.2" in printed.splitlines()[0], "the shape of Qwen2-VL-2B"
        peaks = [float(peak) for peak in re.findall(r"at its highest +([\d.]+) GiB", printed)]
        assert all(1 < peak < limit for peak, limit in zip(peaks[:2], limits, strict=True)), peaks


def test_numbers_are_compared_as_text() -> None:
    made = config("r1v-counting")
    assert made.data.template is not None and "(number)" in made.data.template
    right = {"<think>a</think> <answer> 3 </answer>": True, "<think>a</think><answer>3</answer>": True}
    wrong = dict.fromkeys(("3.0", "03", "+3", "1+2", "three", "3 or 4", "13", "6/2", "\uff13"), False)
    cases = right | {f"<think>a</think><answer>{answer}</answer>": verdict for answer, verdict in wrong.items()}
    for completion, verdict in cases.items():
        assert is_right(completion, "3", mode=made.data.mode) is verdict, completion


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_every_command_of_the_readme_is_accepted(number: int, answers: Mapping[str, Mapping[str, Any]]) -> None:
    answer = answers[f"README {number}"]
    assert answer["code"] == 0, answer["err"]
    if "deploy/recipes/one-gpu-lora.yaml" in COMMANDS[number]:
        assert " 1 GPU" in answer["out"]


def test_the_readme_lists_every_recipe_and_counts_its_steps() -> None:
    assert {*re.findall(r"`([\w-]+)\.yaml`", README)} == {*NAMES}
    rows = re.findall(r"^\| `(\w+)\.yaml`, `\w+-think\.yaml` \| (\d+) \| (\d+) \| (\d+) \|$", README, re.MULTILINE)
    assert {name for name, *_ in rows} == {*SETS}
    for name, classes, epochs, steps in rows:
        assert int(epochs) == config(name).epochs == EPOCHS[name]
        assert int(steps) == config(name).with_epochs_as_steps(4 * int(classes)).steps


def test_one_gpu_takes_any_recipe() -> None:
    words = ["--config", str(RECIPES / "cars-think.yaml"), "--config", str(RECIPES / "one-gpu-lora.yaml")]
    made = cli.parse(words).config
    assert (made.data.path, made.data.mode, made.data.max_prompt_tokens) == (
        "afdsafas/cars-4shot-fewshot",
        "think",
        2048,
    )
    assert (made.learner.ranks, made.rollout.engines, made.lora.rank) == (1, 1, 16)
    assert made.learner.gpus_per_rank + made.rollout.gpus_per_engine == 1
