"""A model folder with code in it: in weights that are pickles, or named by `auto_map`. Nobody runs it unasked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.config.schema import Config, RewardConfig
from common.errors import EngineError, ModelError
from learner.driver.preflight.model import read_model
from learner.model.load import load_model
from rollout import build
from rollout.fleet.fleet import RolloutFleet
from rollout.reward_actor import RewardActor, RewardTask
from rollout.rewards.loading import check_functions
from rollout.rewards.model import RewardModel
from rollout.spec import engine_spec
from tests.helpers.models import build_reward_model
from tests.helpers.planted import plant_in_torch_file, plant_module


def config_of(folder: Path, **keys: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32"} | keys,
            "data": {"max_prompt_tokens": 160},
            "rollout": {"max_completion_tokens": 16, "gpus_per_engine": 0, "cpus_per_engine": 0.1},
            "learner": {"gpus_per_rank": 0},
            "cluster": {"device": "cpu"},
        }
    )


def save_as_pickles(source: Path, folder: Path, marker: Path | None) -> Path:
    """The same model with weights in torch's format, code among them where there is a marker to make."""
    from safetensors.torch import load_file

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    file = folder / "pytorch_model.bin"
    torch.save(load_file(source / "model.safetensors"), file)
    if marker:
        plant_in_torch_file(file, marker)
    return folder


def name_code(source: Path, folder: Path, marker: Path) -> Path:
    """The same model with an `auto_map` in its config.json, whose module makes the marker."""
    shutil.copytree(source, folder)
    plant_module(folder / "planted.py", marker)
    settings = json.loads((folder / "config.json").read_bytes())
    named = {"AutoConfig": "planted.Strange", "AutoModelForImageTextToText": "planted.Strange"}
    (folder / "config.json").write_text(json.dumps(settings | {"auto_map": named}))
    return folder


def test_code_in_weights_is_refused_before_anything_starts(random_qwen2vl: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    planted = save_as_pickles(random_qwen2vl, tmp_path / "planted", marker)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin cannot be used\n.*posix\.mkdir"):
        read_model(config_of(planted))
    with pytest.raises(ModelError, match=r"posix\.mkdir"):
        load_model(str(planted), config_of(planted))
    assert not marker.exists()
    sound = save_as_pickles(random_qwen2vl, tmp_path / "sound", None)
    assert read_model(config_of(sound)).kind == "qwen2_vl"
    load_model(str(sound), config_of(sound))


@pytest.fixture
def reward_model(tmp_path: Path) -> Path:
    """Folder of a random reward model, its weights in torch's format."""
    return build_reward_model(tmp_path / "reward", as_pickles=True)


def test_code_in_the_weights_of_a_reward_model_is_refused(reward_model: Path, tmp_path: Path) -> None:
    RewardModel(str(reward_model))
    plant_in_torch_file(reward_model / "pytorch_model.bin", tmp_path / "marker")
    with pytest.raises(ModelError, match=r"posix\.mkdir"):
        RewardModel(str(reward_model))
    assert not (tmp_path / "marker").exists()


def test_a_reward_model_with_a_template_without_end_is_refused(
    reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.models.chat.RENDER_S", 1.0)
    loops = 4
    template = "{% for a in range(99999) %}" * loops + "{% endfor %}" * loops
    (reward_model / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=r"chat_template\.jinja cannot be rendered\n.*not done after 1 s"):
        check_functions(RewardConfig(functions={f"model:{reward_model}": 1.0}))


@pytest.mark.engine
def test_a_reward_actor_renders_chats(ray_session: None, reward_model: Path) -> None:
    """In a child of Ray's worker, as the process without Ray does."""
    import ray

    (reward_model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    )
    name = f"model:{reward_model}"
    task = RewardTask(
        prompt_id="train/1",
        problem="a?",
        label="a",
        columns={},
        completions=("a", "b", "a"),
        token_ids=((1,), (2,), (3,)),
        candidate_probabilities=None,
    )
    wanted = RewardModel(str(reward_model))(("a", "b", "a"), problem="a?")
    actor: Any = ray.remote(RewardActor).options(num_cpus=0.1).remote([name], {}, 60.0)
    (found,) = ray.get(actor.score.remote([task], [name]), timeout=120)
    ray.kill(actor)
    assert found == {name: pytest.approx(tuple(wanted), rel=1e-5)}
    assert len(set(wanted)) == 2


def test_the_learner_runs_code_only_where_it_may(
    random_qwen2vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "marker"
    folder = name_code(random_qwen2vl, tmp_path / "model", marker)
    load_model(str(folder), config_of(folder))
    assert not marker.exists()
    with pytest.raises(ModelError):
        load_model(str(folder), config_of(folder, trust_remote_code=True))
    assert marker.exists()


@pytest.mark.engine
def test_an_engine_runs_no_code_of_a_model(ray_session: None, random_qwen2vl: Path, tmp_path: Path) -> None:
    """It comes up with code that is named and not needed, and not with code in its weights."""
    marker = tmp_path / "marker"
    start_engine(config_of(name_code(random_qwen2vl, tmp_path / "named", marker)))
    assert not marker.exists()
    with pytest.raises(EngineError, match="could not start"):
        start_engine(config_of(save_as_pickles(random_qwen2vl, tmp_path / "planted", marker)))
    assert not marker.exists()


def start_engine(config: Config) -> None:
    spec = engine_spec(config, model_path=config.model.path, banned=())
    fleet = RolloutFleet(config, spec, on_event=lambda kind, **fields: None)
    try:
        fleet.ready()
    finally:
        fleet.close()


@pytest.mark.parametrize("trusted", [True, False])
def test_an_engine_is_told_whether_it_may_run_code(
    random_qwen2vl: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    (said,) = settings_of_engine(config_of(random_qwen2vl, trust_remote_code=trusted), monkeypatch)
    assert said["trust_remote_code"] is trusted


def settings_of_engine(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What vLLM would be given."""
    found: list[dict[str, Any]] = []

    class LLM:
        def __init__(self, **settings: Any) -> None:
            found.append(settings)

        def apply_model(self, function: Any) -> None:
            pass

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM))
    monkeypatch.setattr(build, "_settings_on_cpu", lambda spec: {})
    monkeypatch.setattr(build, "_make_ban", lambda banned: None, raising=False)
    monkeypatch.setattr("rollout.spec.load_model_config", lambda model: SimpleNamespace(model_type="qwen2_vl"))
    build._make_llm(engine_spec(config, model_path=config.model.path, banned=()), config.model.path)  # noqa: SLF001
    return found
