"""That the benchmarks can be started, and that what they count and print is right. Their figures are nobody's test."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks import default, flops, methods, report

MODULES = (
    "step",
    "step_rollcall",
    "step_trl",
    "learner",
    "rollout",
    "publish",
    "memory",
    "gpu_learner",
    "default",
    "methods",
    "objectives",
    "mismatch",
    "mismatch_run",
    "plan",
    "startup",
    "classes",
    "dead_groups",
    "ranges",
    "fleet",
)
HELPERS = ("cells", "engines", "flops", "report", "w1")
TEXT = SimpleNamespace(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
    vocab_size=10,
)
VISION = SimpleNamespace(
    embed_dim=4,
    hidden_size=8,
    mlp_ratio=2,
    depth=2,
    in_channels=3,
    temporal_patch_size=2,
    patch_size=2,
    spatial_merge_size=2,
)
CONFIG = SimpleNamespace(vision_config=VISION, get_text_config=lambda: TEXT)


def test_every_file_is_a_benchmark_or_a_helper() -> None:
    files = {path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__", "test_benchmarks"}
    assert files == {*MODULES, *HELPERS}


@pytest.mark.parametrize("name", MODULES)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert " ".join(str(module.__doc__).split())[:60] in " ".join(capsys.readouterr().out.split())


def test_make_bench_runs_every_benchmark() -> None:
    makefile = (report.ROOT / "Makefile").read_text()
    wanted = [name for name in MODULES if name not in ("step_rollcall", "step_trl", "mismatch_run")]
    assert f"BENCHMARKS = {' '.join(wanted)}\n" in makefile


def test_gpu_learner_says_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tests.benchmarks import gpu_learner

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_learner.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


BARE_MACHINE = """
import sys

lacking = "accelerate datasets deepspeed pandas peft pyarrow ray scipy sklearn vllm xxhash"
sys.modules.update(dict.fromkeys(lacking.split()))  # None: it is not installed
import torch
import transformers
from torch.nn.attention import varlen

from learner.embedded.tokenizer import token_ids
from tests.benchmarks import gpu_learner, w1
from tests.benchmarks.cells import Cell

varlen.varlen_attn = lambda q, k, v, *lengths, scale, window_size=None: q * 0 + k.sum() + v.sum()  # of torch 2.11
for name, answer in {"is_available": True, "get_device_name": "none", "synchronize": None,
                     "reset_peak_memory_stats": None, "max_memory_allocated": 0}.items():
    setattr(torch.cuda, name, lambda answer=answer: answer)


def build():
    rope = gpu_learner.TEXT["rope_parameters"] | {"mrope_section": [2, 3, 3]}
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = gpu_learner.TEXT | text | {"rope_parameters": rope}
    vision = gpu_learner.VISION | {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    special = token_ids(w1.processor().tokenizer)
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special)
    return transformers.AutoModelForImageTextToText.from_config(
        config, trust_remote_code=False, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).train()


gpu_learner.build, gpu_learner.CELLS = build, (Cell(2, 312, 3),)
real = gpu_learner.prepare
def prepare(model, way, scored):
    if way == "sdpa":
        raise RuntimeError("CUDA error: out of luck")
    return real(model, way, scored)
gpu_learner.prepare = prepare
print("ended with", gpu_learner.main(["--repeats", "1", "--ways", "sdpa", "flash"]))
"""


@pytest.mark.slow
def test_gpu_learner_runs_on_a_bare_machine_and_a_row_that_fails_costs_no_other() -> None:
    """Without all that such a machine lacks, an older torch's attention without grouped queries included."""
    done = subprocess.run(
        [sys.executable, "-c", BARE_MACHINE],
        cwd=report.ROOT,
        env=report.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [line for line in lines if line.startswith("G=2 P=312 C=3 ")]
    assert rows[0].startswith("G=2 P=312 C=3 naive: {")
    assert rows[1] == "G=2 P=312 C=3 sdpa: failed: RuntimeError: CUDA error: out of luck"
    assert rows[2].startswith("G=2 P=312 C=3 flash: {")
    assert lines[-1] == "ended with 1"
    assert json.loads(lines[-2])["cells"].keys() == {"G=2 P=312 C=3 naive", "G=2 P=312 C=3 flash"}


def test_text_flops_are_those_of_its_matrices() -> None:
    per_token = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, gate and up and down
    assert flops.text_forward(TEXT, tokens=5, pairs=0) == 3 * 2 * 5 * per_token
    assert flops.text_forward(TEXT, tokens=0, pairs=7) == 3 * 7 * 2 * (2 * 8)  # scores and their sum of values
    unread = 2 * 4 * (8 * 8 + 8 * 8 + 3 * 8 * 16) + 10 * 2 * (2 * 8)  # q, o, MLP of 4 tokens; their attention
    spared = flops.text_forward(TEXT, tokens=5, pairs=15) - flops.text_forward(TEXT, tokens=5, pairs=15, unread=4)
    assert spared == unread
    assert flops.head_forward(TEXT, tokens=5) == 2 * 5 * 8 * 10


def test_vision_flops_are_those_of_its_matrices() -> None:
    patches = 1 * 4 * 2
    linear = patches * (24 * 4 + 2 * (4 * 4 * 4 + 2 * 4 * 8)) + patches // 4 * (16 * 16 + 16 * 8)
    assert flops.vision_forward(VISION, [(1, 4, 2)]) == 2 * linear + 2 * 2 * 2 * patches**2 * 4
    two = flops.vision_forward(VISION, [(1, 4, 2), (1, 2, 2)])
    assert two == flops.vision_forward(VISION, [(1, 4, 2)]) + flops.vision_forward(VISION, [(1, 2, 2)])


def test_counts_agree_with_what_torch_counts() -> None:
    """Attention aside, which torch counts whole where a causal mask leaves half."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tests.helpers import tiny

    model = tiny.model()
    grid = (1, 4, 6)
    ids = torch.tensor([[5, tiny.VISION_START, *[tiny.IMAGE] * 6, tiny.VISION_END, 7, 8]])
    pixels = torch.randn(24, 3 * 2 * tiny.PATCH**2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            input_ids=ids,
            mm_token_type_ids=(ids == tiny.IMAGE).int(),
            pixel_values=pixels,
            image_grid_thw=torch.tensor([grid]),
            logits_to_keep=1,
        )
    counts: Any = counter.get_flop_counts()["Global"]
    linear = sum(count for kind, count in counts.items() if "attention" not in str(kind))
    text, vision = model.config.get_text_config(), model.config.vision_config
    side = flops.vision_forward(vision, [grid]) - vision.depth * 4 * vision.embed_dim * 24**2
    rope = linear - side - flops.text_forward(text, tokens=11, pairs=0) - flops.head_forward(text, tokens=1)
    assert 0 <= rope < 0.01 * linear  # rotary angles are a product too


def test_a_group_needs_its_prompt_once() -> None:
    sizes: dict[str, Any] = {"prompt": 5, "grids": [(1, 2, 2)]}
    shared = flops.group_forward(CONFIG, **sizes, completions=[3, 1])
    alone = [flops.group_forward(CONFIG, **sizes, completions=[length]) for length in (3, 1)]
    text = flops.text_forward(TEXT, tokens=5, pairs=15, unread=4)
    prompt = flops.vision_forward(VISION, sizes["grids"]) + text
    assert shared == sum(alone) - prompt
    assert flops.naive_forward(CONFIG, **sizes, completions=[3, 1]) == sum(alone)
    assert alone[1] == prompt + flops.head_forward(TEXT, tokens=1)


def test_a_step_is_sampled_once_scored_twice_and_differentiated() -> None:
    assert flops.step_needs(10) == 50
    assert flops.step_needs(10, rollout=False) == 40
    assert flops.step_needs(10, rollout=False, reference=False) == 30


def test_table_lines_up() -> None:
    shown = report.table(["name", "s"], [["a", 1.23456], ["longer", 12]])
    assert shown.splitlines() == ["name       s", "a       1.23", "longer    12"]


def test_json_line_is_the_last_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print("noise")
    report.emit("learner", {"speedup": {"G=8": 2.0}})
    found = report.last_line(capsys.readouterr().out)
    assert found["benchmark"] == "learner" and found["speedup"] == {"G=8": 2.0}
    assert {"cores", "load", "torch"} <= found["machine"].keys()


def test_a_failed_side_shows_its_own_words() -> None:
    with pytest.raises(RuntimeError, match="invalid int value"):
        report.in_fresh_process("tests.benchmarks.default", "--seeds=one")


@pytest.mark.slow
def test_peak_memory_is_seen() -> None:
    code = """
from tests.benchmarks import memory
held = memory.forget_peak()
block = bytearray(64 << 20)
block[::4096] = bytes([1]) * len(block[::4096])
print(memory.peak() - held)
"""  # in a process of its own: this one may give memory back meanwhile
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert 60 < float(done.stdout) < 80


def test_default_reads_a_run(tmp_path: Path) -> None:
    steps = [{"step_seconds": 2.0, "completions_per_second": 8.0, "share/publish": 0.1}] * 30
    evaluations = [{"step": step, "accuracy": accuracy} for step, accuracy in ((0, 0.2), (10, 0.89), (20, 0.9))]
    summary = {"startup_seconds": 9.0, "accuracy_after": 0.9, "max_logprob_gap": 1e-6}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = default.read(tmp_path)
    assert (found["seconds_to_90"], found["steps_to_90"], found["train_seconds"]) == (40.0, 20, 60.0)
    assert found["publish_share"] == pytest.approx(0.1)
    assert found["completions_to_90"] == 320 and found["curve"] == {0: 0.2, 10: 0.89, 20: 0.9}


def test_methods_are_compared_seed_by_seed() -> None:
    """One that did not get there has no ratio, and is not left out of the slowest."""
    grpo: dict[int, dict[str, Any]] = {
        1: {"seconds_to_90": 40.0, "accuracy": 0.93},
        2: {"seconds_to_90": 30.0, "accuracy": 0.95},
    }
    exact: dict[int, dict[str, Any]] = {
        1: {"seconds_to_90": 8.0, "accuracy": 0.91},
        2: {"seconds_to_90": None, "accuracy": 0.89},
    }
    assert methods.ratio({"grpo": grpo, "exact": exact}) == {"exact_to_grpo": [0.2, None]}
    assert methods.ratio({"sft": exact}) == {}
    assert methods.summed_up(grpo) == {"slowest_to_90": 40.0, "least_accuracy": 0.93, "runs": grpo}
    assert methods.summed_up(exact)["slowest_to_90"] is None
