"""The configuration itself: what cannot be combined, what may change on resume, and what the hash stands for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.config.schema import Config, config_hash, flatten, incompatible_keys, keys_free_on_resume
from common.errors import ConfigError


def with_value(key: str, value: Any) -> Config:
    section, _, name = key.rpartition(".")
    return Config.model_validate({section: {name: value}} if section else {name: value})


def test_defaults_are_the_recipe_of_cls_rl() -> None:
    config = Config()
    assert (config.rollout.prompts_per_step, config.rollout.group_size) == (16, 4)
    assert (config.learner.lr, config.learner.beta, config.learner.schedule) == (1e-6, 0.04, "linear")
    assert config.data.image_size == 384


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"learner": {"ranks": 3}}, "learner.ranks = 3 does not divide rollout.prompts_per_step = 16"),
        ({"cluster": {"device": "cpu"}}, "set learner.gpus_per_rank to 0"),
        ({"cluster": {"device": "cpu"}, "learner": {"gpus_per_rank": 0}}, "set rollout.gpus_per_engine to 0"),
        ({"cluster": {"device": "cpu"}, "weights": {"transport": "nccl"}}, "use object_store on CPU"),
        ({"rollout": {"gpus_per_engine": 2}}, "set rollout.gpus_per_engine to 1, and raise rollout.engines"),
        ({"learner": {"gpus_per_rank": 4}}, "set learner.gpus_per_rank to 1, and raise learner.ranks"),
        ({"rollout": {"gpus_per_engine": 1.5}}, "there is no tensor parallelism"),
        ({"rollout": {"engines": {"min": 4, "max": 2}}}, "min is above max"),
        ({"rollout": {"update": "in_flight"}}, "no newer weights come amid a batch"),
        ({"rollout": {"replay": "runs/one", "max_lag": 1}}, "only runs with in_flight keep a journal"),
        (
            {"rollout": {"engines": {"min": 1, "max": 2}}, "method": "sft", "learner": {"beta": 0.0}},
            "waits for no engine",
        ),
        (
            {"weights": {"transport": "nccl"}, "rollout": {"gpus_per_engine": 0.4}, "learner": {"gpus_per_rank": 0.6}},
            "set learner.gpus_per_rank to 1, or weights.transport to object_store",
        ),
        ({"learner": {"ranks": 2, "gpus_per_rank": 0.5}}, "raise learner.gpus_per_rank above 0.5"),
        ({"learner": {"ranks": 2, "gpus_per_rank": 0}}, "raise learner.gpus_per_rank above 0.5"),
        ({"learner": {"attention": "flex"}, "cluster": {"device": "cpu"}}, "learner.attention = flex needs"),
        ({"learner": {"attention": "sparse"}}, "learner.attention = sparse needs cluster.device = cpu"),
        ({"learner": {"attention": "flash"}, "model": {"dtype": "float32"}}, "it takes bfloat16 alone"),
        (
            {"learner": {"reference_ema": 0.9, "reference_reset_every": 5}},
            "learner.reference_reset_every = 5 with learner.reference_ema = 0.9",
        ),
        ({"learner": {"reference_ema": 0.9, "beta": 0.0}}, "learner.reference_ema = 0.9 with learner.beta = 0"),
        ({"learner": {"reference_reset_every": 5, "beta": 0.0}}, "learner.reference_reset_every = 5 with learner.beta"),
        ({"learner": {"reference_reset_every": 5}, "lora": {"rank": 8}}, "the model without its adapters"),
        ({"learner": {"reference_ema": 0.5}, "lora": {"rank": 8}}, "the model without its adapters"),
        ({"steps": 5, "learner": {"reference_reset_every": 5}}, "is after the last step of steps = 5"),
        ({"learner": {"reference_reset_every": 1}}, "every step would begin at its reference"),
        ({"steps": 5, "learner": {"warmup_steps": 5}}, "learner.warmup_steps = 5 leaves no step of steps = 5"),
        ({"method": "exact", "data": {"mode": "think"}}, "method = exact with data.mode = think"),
        ({"method": "exact", "exact": {"sampled_share": 0.01}}, "of rollout.prompts_per_step = 16 is 0 prompts"),
        ({"method": "exact", "exact": {"sampled_share": 0.99}}, "of rollout.prompts_per_step = 16 is 16 prompts"),
        ({"method": "sft"}, "method = sft with learner.beta = 0.04"),
        ({"data": {"template": "What is it?"}}, "holds {problem} 0 times"),
        ({"data": {"template": "{problem} {problem}"}}, "holds {problem} 2 times"),
        ({"model": {"min_pixels": 9, "max_pixels": 8}}, "model.min_pixels = 9 is above model.max_pixels = 8"),
        (
            {"lora": {"rank": 8, "targets": "language_and_vision"}, "model": {"freeze_vision": True}},
            "lora.targets = language_and_vision: choose one",
        ),
        ({"checkpoint": {"export": "adapter"}}, "there is no adapter to write"),
        ({"learner": {"offload": "optimizer", "zero_stage": 0}}, "from stage 1 on"),
        ({"model": {"dtype": "bfloat16"}, "learner": {"zero_stage": 0}}, "set learner.zero_stage = 1"),
        ({"model": {"dtype": "bfloat16"}, "learner": {"max_logprob_gap": 1e-3}}, "set learner.max_logprob_gap = null"),
        ({"learner": {"offload": "optimizer_and_parameters"}}, "from stage 3 on"),
        ({"learner": {"offload": "optimizer"}, "cluster": {"device": "cpu"}}, "all is in the host's memory already"),
        ({"learner": {"keep_every": 2, "max_restarts": 0}}, "learner.keep_every = 2 with learner.max_restarts = 0"),
        ({"evaluation": {"stop_delta": 0.1}}, "evaluation.stop_delta = 0.1 with evaluation.stop_after = null"),
        ({"evaluation": {"stop_after": 2, "every": 0}}, "nothing is evaluated before the end"),
        ({"steps": 100, "evaluation": {"stop_after": 2}}, "end no earlier than steps = 100; lower one"),
        ({"rollout": {"group_size": 1}}, "greater than or equal to 2"),
        ({"learner": {"betas": [0.9, 1.0]}}, "less than or equal to 0.999999"),
        ({"learner": {"lr": float("inf")}}, "finite number"),
        ({"rollout": {"engins": 1}}, "Extra inputs"),
    ],
)
def test_impossible_configurations_are_refused(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        Config.model_validate(raw)


@pytest.mark.parametrize(
    "raw",
    [
        {"weights": {"transport": "nccl"}},
        {"rollout": {"gpus_per_engine": 0.4}, "learner": {"gpus_per_rank": 0.6, "ranks": 2}},
        {"rollout": {"gpus_per_engine": 0.4}, "learner": {"gpus_per_rank": 0.4}},
    ],
)
def test_possible_shares_of_gpus_are_accepted(raw: dict[str, Any]) -> None:
    """A rank and an engine on one GPU, and whole GPUs for NCCL."""
    assert Config.model_validate(raw).cluster.device == "cuda"


def test_every_misfit_is_reported() -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"learner": {"ranks": 3, "warmup_steps": 999}, "cluster": {"device": "cpu"}})
    assert len(str(caught.value.errors()[0]["ctx"]["error"]).splitlines()) == 4


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(1, 16, 1), (1, 17, 2), (50, 188, 588), (10, 4000, 2500)])
def test_epochs_are_counted_in_steps(epochs: int, rows: int, steps: int) -> None:
    config = Config(epochs=epochs).with_epochs_as_steps(rows)
    assert (config.steps, config.epochs) == (steps, None)
    assert config == Config(steps=steps)
    assert config.with_epochs_as_steps(1) is config, "what is in steps stays"
    assert incompatible_keys(config, Config(epochs=epochs).with_epochs_as_steps(rows + 16)).keys() == {"steps"}


def test_epochs_too_few_for_the_warmup_are_refused_once_counted() -> None:
    config = Config.model_validate({"epochs": 2, "learner": {"warmup_steps": 300}})
    assert config.with_epochs_as_steps(3200).steps == 400
    with pytest.raises(ConfigError, match=r"epochs = 2 over 160 rows are 20 steps(.|\n)*warmup_steps = 300"):
        config.with_epochs_as_steps(160)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Config(), "steps", 3)  # noqa: B010 (the type checker refuses the plain form)


def test_flatten_names_every_leaf_and_keeps_mappings_whole() -> None:
    flat = flatten(Config())
    assert flat["reward.functions"] == {"accuracy": 1.0}
    assert flat["learner.betas"] == (0.9, 0.999)
    assert "learner" not in flat


FREE = {
    "": "run_dir name resume retries",
    "data": "check_copies cache_mb timeout_s",
    "rollout": "engines max_sequences kv_cache_mb gpu_memory_utilization cpus_per_engine labels gpus_per_engine replay "
    "max_restarts start_timeout_s step_timeout_s",
    "reward": "max_drop_share timeout_s workers cpus_per_worker",
    "learner": "probe_gap max_logprob_gap mean_logprob_gap max_skipped_steps cpus_per_rank labels gpus_per_rank "
    "start_timeout_s step_timeout_s heartbeat_s max_restarts keep_every",
    "signal": "max_seconds",
    "weights": "transport bucket_mb timeout_s",
    "evaluation": "every stop_after stop_delta limit closed_set sets samples pass_at_k",
    "checkpoint": "every keep best_by grace_s export",
    "tracking": "services project samples_every samples profile_steps",
    "cluster": "address device threads wait_for_resources_s heartbeat_s hang_s",
}


def test_a_key_is_free_on_resume_only_where_somebody_decided_so() -> None:
    """A new key that is marked, or stands in a marked section, wants a line above; one without a mark is decisive."""
    decided = {f"{section}.{key}".lstrip(".") for section, names in FREE.items() for key in names.split()}
    assert keys_free_on_resume() == decided


@pytest.mark.parametrize("key", sorted(flatten(Config())))
def test_every_key_is_either_free_on_resume_or_decides_the_hash(key: str) -> None:
    section, _, name = key.rpartition(".")
    own = Config().model_copy(update={name: "changed"})
    if section:
        own = Config().model_copy(update={section: getattr(Config(), section).model_copy(update={name: "changed"})})
    free = key in keys_free_on_resume()
    assert incompatible_keys(Config(), own).keys() == (set() if free else {key})
    assert (config_hash(own) == config_hash(Config())) is free


CHANGES = [
    ("seed", 2, True),
    ("steps", 300, True),
    ("method", "exact", True),
    ("exact.sampled_share", 0.5, True),
    ("model.revision", "abc", True),
    ("data.path", "elsewhere", True),
    ("rollout.group_size", 8, True),
    ("reward.functions", {"accuracy": 2.0}, True),
    ("learner.lr", 2e-6, True),
    ("learner.ranks", 2, True),
    ("rollout.engines", 3, False),
    ("rollout.engines", {"min": 1, "max": 3}, False),
    ("rollout.kv_cache_mb", 64, False),
    ("learner.step_timeout_s", 1.0, False),
    ("reward.workers", 2, False),
    ("run_dir", "runs/x", False),
    ("name", "other", False),
    ("resume", "auto", False),
    ("evaluation.every", 1, False),
    ("checkpoint.keep", 9, False),
    ("tracking.samples", 9, False),
    ("cluster.threads", 2, False),
    ("weights.transport", "nccl", False),
]


@pytest.mark.parametrize(("key", "value", "decisive"), CHANGES, ids=[key for key, _, _ in CHANGES])
def test_hash_and_resume_agree_on_what_decides_a_run(key: str, value: Any, decisive: bool) -> None:
    old, new = Config(), with_value(key, value)
    assert flatten(new)[key] != flatten(old)[key]
    assert (config_hash(new) != config_hash(old)) is decisive
    expected = {key: (flatten(old)[key], flatten(new)[key])} if decisive else {}
    assert incompatible_keys(old, new) == expected


def test_hash_is_the_same_in_every_process() -> None:
    command = [
        sys.executable,
        "-c",
        "from common.config.schema import Config, config_hash; print(config_hash(Config()))",
    ]
    root = Path(__file__).parents[3]
    printed = {
        subprocess.run(
            command, env={"PYTHONHASHSEED": seed}, cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{config_hash(Config())}\n"}


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"role": "learner"}, [{"role": "learner"}]),
        ("role=learner,zone=a", [{"role": "learner", "zone": "a"}]),
        (
            [{"market": "spot"}, {"market": "in(on-demand, reserved)"}],
            [{"market": "spot"}, {"market": "in(on-demand, reserved)"}],
        ),
        ([], []),
    ],
)
def test_labels_are_one_choice_or_several(given: object, labels: list[dict[str, str]]) -> None:
    config = Config.model_validate({"learner": {"labels": given}})
    assert config.learner.labels == labels
    assert Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "given", [{"role": "a b"}, {"role": ""}, {"role": None}, {}, [{}], "role", "role=", 3, {"role": "in()"}]
)
def test_labels_that_no_node_can_have_are_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"rollout": {"labels": given}})
