"""`--plan`: bytes that are arithmetic, exactly; what is printed, and what it says when a run does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.schema import Config, ModelConfig
from learner.main import main
from learner.memory import plan as plans
from learner.memory.plan import Counts, plan, plan_rank
from learner.memory.show import _remedies, show_plan
from tests.helpers import models, tiny


def settings(*, dtype: str = "float32", data: dict[str, Any] | None = None, **learner: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"dtype": dtype},
            "data": {"image_size": 56, "max_prompt_tokens": 64, **(data or {})},
            "rollout": {"gpus_per_engine": 0, "prompts_per_step": 4, "max_completion_tokens": 8},
            "learner": {"gpus_per_rank": 0, **learner},
            "cluster": {"device": "cpu"},
        }
    )


def test_weights_gradients_and_moments_are_counted_exactly() -> None:
    model = tiny.model()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    share = {part.name: part.nbytes for part in plan_rank(Counts.of(model), 0, settings(zero_stage=0)).parts}
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert (share["weights"], share["gradients"], share["reference"]) == (weights, weights, weights)
    assert share["optimizer"] == sum(moment.nbytes for moment in moments)


# In units of the weights in float32, as DeepSpeed's tensors were found: weights, gradients, optimizer.
@pytest.mark.parametrize(
    ("stage", "dtype", "ranks", "held"),
    [
        (0, "float32", 1, (1, 1, 2)),
        (1, "float32", 1, (1, 1, 3)),
        (1, "float32", 2, (1, 1, 1.5)),
        (2, "float32", 2, (1, 0.5, 1.5)),
        (2, "bfloat16", 1, (0.5, 0.5, 3)),
        (3, "float32", 2, (0.5, 0.5, 1.5)),
        (3, "bfloat16", 1, (0.5, 0.5, 3)),
    ],
)
def test_what_each_zero_stage_splits(stage: int, dtype: str, ranks: int, held: tuple[float, ...]) -> None:
    size = torch.float32.itemsize if dtype == "float32" else torch.bfloat16.itemsize
    counts = Counts(total=4000, vision=1000, trained=4000, largest=400, itemsize=size)
    parts = plan_rank(counts, 0, settings(dtype=dtype, zero_stage=stage, ranks=ranks)).parts
    assert [part.nbytes / 16000 for part in parts[:3]] == list(held)


def test_no_reference_without_beta() -> None:
    counts = Counts.of(tiny.model())
    names = [part.name for part in plan_rank(counts, 0, settings(beta=0)).parts]
    assert "reference" not in names


@pytest.mark.parametrize(("dtype", "bytes_more"), [("float32", 0), ("bfloat16", 4)])
@pytest.mark.parametrize(("stage", "ranks"), [(2, 2), (3, 2)])
def test_a_moving_average_is_kept_in_float32(dtype: str, bytes_more: int, stage: int, ranks: int) -> None:
    counts = Counts.of(tiny.model().to(getattr(torch, dtype)))
    still, moving = (
        plan_rank(counts, 0, settings(dtype=dtype, zero_stage=stage, ranks=ranks, reference_ema=decay))
        for decay in (None, 0.9)
    )
    assert moving.nbytes - still.nbytes == bytes_more * counts.trained // (ranks if stage == 3 else 1)


def test_a_rank_is_as_large_as_its_largest_moment() -> None:
    counts = Counts.of(tiny.model())
    config = settings(zero_stage=1)
    low, high = plan_rank(counts, 0, config), plan_rank(counts, 10**9, config)
    assert low.nbytes - sum(part.nbytes for part in low.parts) == max(part.nbytes for part in low.passing[1:])
    assert high.nbytes - sum(part.nbytes for part in high.parts) == 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = models.build_random_model(tmp_path_factory.mktemp("models") / "random", seed=1)
    return ModelConfig(path=str(folder), dtype="float32")


@pytest.mark.slow
def test_longer_completions_and_larger_pictures_take_more(model: ModelConfig) -> None:
    least = plan(settings(), model).rank.nbytes
    assert plan(settings(data={"image_size": 112}), model).rank.nbytes > least
    assert plan(settings(data={"max_prompt_tokens": 640}), model).rank.nbytes > least


def test_a_family_that_cannot_be_traced_is_planned_without(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(plans, "trace_learning_peak", fails)
    made = plan(settings(), model)
    assert "not counted" in made.pack
    assert made.rank.nbytes > sum(part.nbytes for part in made.rank.parts)


@pytest.mark.slow
def test_it_says_what_helps_when_it_does_not_fit(model: ModelConfig) -> None:
    config = settings(data={"max_prompt_tokens": 2048})
    made = plan(config, model)
    fits = "\n".join(show_plan(made, model, ("a machine", 2**40)))
    assert "fits: a machine has 1024.00 GiB" in fits
    assert "with model." not in fits
    short = "\n".join(show_plan(made, model, ("a machine", 2**20)))
    assert "does not fit: a machine has 1.0 MiB" in short
    assert "with model.gradient_checkpointing=true" in short
    assert "no GPU here" in "\n".join(show_plan(made, model, None))


@pytest.mark.parametrize(
    ("freeze", "rank", "targets", "wanted"),
    [
        (False, 0, "language", {"model.freeze_vision=true", "lora.rank=16"}),
        (True, 0, "language", {"lora.rank=16"}),
        (True, 0, "language_and_vision", {"lora.rank=16, lora.targets=language"}),
        (False, 4, "language_and_vision", {"lora.targets=language"}),
        (False, 4, "language", set()),
    ],
)
def test_every_remedy_is_a_configuration_that_a_run_accepts(
    freeze: bool, rank: int, targets: str, wanted: set[str]
) -> None:
    """Frozen vision does not go with adapters in the vision tower."""
    made = settings(zero_stage=1, ranks=2).model_dump()
    made["model"]["freeze_vision"], made["lora"] = freeze, {"rank": rank, "targets": targets}
    found = list(_remedies(Config.model_validate(made)))
    for words, remedy in found:
        assert Config.model_validate(remedy.model_dump()) == remedy, words
    assert {words for words, _ in found if "freeze" in words or "lora" in words} == wanted


def test_no_remedy_gives_adapters_to_a_run_whose_reference_moves() -> None:
    for moving in ({"reference_ema": 0.9}, {"reference_reset_every": 5}):
        found = dict(_remedies(settings(zero_stage=1, ranks=2, **moving)))
        assert "lora.rank=16" not in found
        for remedy in found.values():
            assert Config.model_validate(remedy.model_dump()) == remedy


@pytest.mark.slow
def test_the_command_prints_it_and_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--plan", f"run_dir={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "each of 1 learner rank(s)",
        "each of 1 engine(s)",
        "forward, backward",
        "KV cache",
        "fits: this machine",
    ):
        assert line in printed
    assert not (tmp_path / "run").exists()


def test_the_largest_group_that_may_come_is_planned_for() -> None:
    """Not the one of the average size."""
    alike = settings(tokens_per_pack=1)
    dealt = Config.model_validate(alike.model_dump() | {"signal": {"max_group_size": 11}})
    for config, most in ((alike, 4), (dealt, 11)):
        assert {shape["completions"] for shape, _ in plans._largest_packs(config, 16)} == {most}  # noqa: SLF001
