"""What a dry run refuses of a model: its weights, its tokenizer, and lengths and sizes that it or an engine lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.config.schema import Config, RewardConfig
from common.engine_sizes import count_least_cache
from common.errors import ModelError
from common.models.places import check_place
from learner import main
from learner.driver.preflight.evaluation import read_target
from learner.driver.preflight.model import read_model
from learner.driver.preflight.sizes import check_lengths_fit
from learner.evaluation.args import parse
from learner.model.load import export_model, load_model
from rollout.rewards.loading import check_functions
from tests.helpers.makers import image_folder
from tests.helpers.models import build_reward_model

Change = Callable[[Path], object]
NORM = "model.layers.0.input_layernorm.weight"
RECIPE = str(Path(__file__).parents[3] / "deploy/recipes/digits.yaml")


@pytest.fixture
def folder(random_qwen2vl: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_qwen2vl, tmp_path / "model")


@pytest.fixture
def place(tmp_path: Path) -> str:
    return image_folder(tmp_path / "pictures", {"one": 6, "two": 6})


def dry_run(folder: Path, place: str, *words: str) -> int:
    own = [f"model.path={folder}", f"data.path={place}", "data.eval_split=null", "data.max_prompt_tokens=300"]
    steps = ["rollout.prompts_per_step=4", "steps=20", "rollout.max_completion_tokens=16"]
    return main.main(["--config", RECIPE, "--dry-run", *own, *steps, *words])


def edit(name: str, change: Callable[[Any], object]) -> Change:
    def do(folder: Path) -> None:
        found = json.loads((folder / name).read_bytes())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return do


def without(*names: str) -> Change:
    def do(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return do


def without_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in sorted(tensors)[::5]:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_longer_tokenizer(*, used: bool) -> Change:
    """One token more than the embedding has rows; the chat template uses it or does not."""

    def do(folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.add_tokens(["<extra>"])
        tokenizer.save_pretrained(folder)
        if used:
            file = folder / "chat_template.jinja"
            file.write_text(file.read_text() + "<extra>")

    return do


def empty_vocabulary(found: Any) -> None:
    found["model"]["vocab"], found["model"]["merges"] = {}, []


def end_with(end: Any) -> Change:
    return edit("generation_config.json", lambda found: found.update(eos_token_id=end))


def take_pictures_for(token: int) -> Change:
    return edit("config.json", lambda found: found.update(image_token_id=token))


def set_config(**new: Any) -> Change:
    return edit("config.json", lambda found: found.update(new))


def set_images(**new: Any) -> Change:
    return edit("processor_config.json", lambda found: found["image_processor"].update(new))


def set_template(text: str) -> Change:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def set_rope(**new: Any) -> Change:
    rope = {"rope_type": "default", "rope_theta": 10000.0, **new}
    return edit("config.json", lambda found: found["text_config"].update(rope_parameters=rope))


REFUSED: dict[str, tuple[Change, str]] = {
    "LFS pointers": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"),
        "git lfs pull",
    ),
    "no weights": (without("model.safetensors"), "has no weights"),
    "a fifth of the tensors": (without_tensors, "tensors are not there"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "has no words"),
    "an empty vocabulary": (edit("tokenizer.json", empty_vocabulary), "has no words"),
    "no processor": (without("processor_config.json"), "cannot be read"),
    "no chat template": (without("chat_template.jinja"), "has no chat template"),
    "a token without a row": (with_a_longer_tokenizer(used=True), "'<extra>', token 359 of a model"),
    "an end beyond the vocabulary": (end_with([99999]), "ends answers with a token that the model does not have"),
    "a negative end": (end_with(-1), "eos_token_id -1"),
    "an end that is true": (end_with(True), "eos_token_id True"),
    "the token of pictures as an end": (end_with([2, 6]), "eos_token_id 6, '<|image_pad|>'"),
    "an end in words": (end_with("<|im_end|>"), "eos_token_id '<|im_end|>'"),
    "a generation config that is no JSON": (lambda f: (f / "generation_config.json").write_text("{"), "cannot be read"),
    "a generation config that is a list": (lambda f: (f / "generation_config.json").write_text("[]"), "cannot be read"),
    "an image token beyond the vocabulary": (take_pictures_for(99999), "does not find the pictures"),
    "another image token": (take_pictures_for(3), "does not find the pictures"),
    "the mark before a picture": (take_pictures_for(4), "does not find the pictures"),
    "another architecture": (set_config(architectures=["LlamaForCausalLM"]), "architectures ['LlamaForCausalLM']"),
    "another family's architecture": (
        set_config(architectures=["Qwen2_5_VLForConditionalGeneration"]),
        "model_type qwen2_vl, which is Qwen2VLForConditionalGeneration",
    ),
    "no architecture": (edit("config.json", lambda found: found.pop("architectures")), "architectures []"),
    "an empty list of architectures": (set_config(architectures=[]), "architectures []"),
    "no sections of positions": (set_rope(), "mrope_section None, where three numbers must add up to 16"),
    "sections too short": (set_rope(mrope_section=[1, 1, 1]), "must add up to 16"),
    "sections too long": (set_rope(mrope_section=[16, 24, 24]), "must add up to 16"),
    "two sections": (set_rope(mrope_section=[8, 8]), "must add up to 16"),
    "sections in words": (set_rope(mrope_section="4, 6, 6"), "must add up to 16"),
    "patches of another size": (set_images(patch_size=28), "patch_size 28, where vision_config has patch_size 14"),
    "more patches a token": (set_images(merge_size=4), "merge_size 4, where vision_config has spatial_merge_size 2"),
    "patches of one frame": (set_images(temporal_patch_size=1), "temporal_patch_size 1"),
    "a mean of one number": (set_images(image_mean=[0.5]), "image_mean [0.5], where a picture has 3 channels"),
    "a deviation of zero": (set_images(image_std=[0.0, 0.0, 0.0]), "image_std [0.0, 0.0, 0.0]"),
    "a mean of NaN": (set_images(image_mean=[float("nan")] * 3), "image_mean [nan, nan, nan]"),
    "a factor in words": (set_images(rescale_factor="x"), "rescale_factor 'x'"),
    "another family's processor": (
        edit("processor_config.json", lambda found: found.update(processor_class="SmolVLMProcessor")),
        "cannot read a picture",
    ),
    "a template without pictures": (
        set_template("{% for m in messages %}{% for c in m.content %}{{ c.text or '' }}{% endfor %}{% endfor %}"),
        "chat_template.jinja leaves pictures out",
    ),
    "a template with words for a picture": (
        set_template("{% for c in messages[0].content %}{{ c.text or '[picture]' }}{% endfor %}"),
        "does not find the pictures",
    ),
    "numbers that overflow": (set_images(rescale_factor=1e300, image_std=[1e-300] * 3), "remedy"),
    "a config.json with a byte order mark": (
        lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf" + (f / "config.json").read_bytes()),
        "config.json starts with a byte order mark",
    ),
    "a web page for a tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("<!doctype html><html></html>"),
        "tokenizer.json is a web page",
    ),
    "an empty config.json": (lambda f: (f / "config.json").write_text(""), "config.json is empty"),
    "a list for a config.json": (lambda f: (f / "config.json").write_text("[]"), "config.json holds no mapping"),
    "half a config.json": (lambda f: (f / "config.json").write_text('{"a": '), "config.json is no JSON"),
    "no config.json": (without("config.json"), "no config.json in"),
    "no model type": (edit("config.json", lambda found: found.pop("model_type")), "config.json has no model_type"),
    "a dtype nobody knows": (set_config(dtype="bf16"), "config.json has dtype 'bf16'"),
    "a pad token beyond the vocabulary": (
        edit("config.json", lambda found: found["text_config"].update(pad_token_id=99999)),
        "no model can be made of",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_dry_run_refuses(folder: Path, place: str, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """In one error of three lines, before anything starts."""
    change, said = REFUSED[name]
    change(folder)
    assert dry_run(folder, place) == 2
    error = capsys.readouterr().err
    assert said in error
    assert [line.split(":")[0].strip() for line in error.splitlines()[-3:]] == ["error", "got", "remedy"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{folder}/config.json", "it is a file\n  remedy: give its folder"),
        ("{folder}/none", "no such folder"),
        ("~/nosuch", "no such folder"),
        ("../nosuch", "no such folder"),
        ("a/b/c", "no such folder"),
        ("file://{folder}", "remedy: write {folder}"),
        ("s3://bucket/model", "download the model into a folder"),
        ("https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/tree/main", "remedy: write Qwen/Qwen2-VL-2B-Instruct"),
        (" {folder} ", "blanks around it"),
        ("embedded:tny", "perhaps embedded:tiny"),
    ],
)
def test_paths_that_are_no_model(folder: Path, path: str, said: str) -> None:
    config = Config.model_validate({"model": {"path": path.format(folder=folder)}})
    with pytest.raises(ModelError) as caught:
        read_model(config)
    assert said.format(folder=folder) in str(caught.value)


@pytest.mark.parametrize("path", ["Qwen/Qwen2-VL-2B-Instruct", "gpt2", "a/b.c-d_e"])
def test_hub_ids_are_places(path: str) -> None:
    check_place(path)


ACCEPTED: dict[str, Change] = {
    "as it is": lambda folder: None,
    "no generation config": without("generation_config.json"),
    "a generation config to sample with": edit(
        "generation_config.json", lambda found: found.update(temperature=0.01, top_k=1, repetition_penalty=1.05)
    ),
    "several ends": end_with([2, 0]),
    "sections under their old name": edit(
        "config.json",
        lambda found: (
            found["text_config"].pop("rope_parameters"),
            found["text_config"].update(rope_theta=1e4, rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]}),
        ),
    ),
    "an architecture of ours beside it": set_config(architectures=["Qwen2VLForConditionalGeneration", "Mine"]),
    "a longer tokenizer": with_a_longer_tokenizer(used=False),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_dry_run_accepts(folder: Path, place: str, capsys: pytest.CaptureFixture[str], name: str) -> None:
    ACCEPTED[name](folder)
    assert dry_run(folder, place) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert ("warning: the model has no rows for 1 tokens of its tokenizer, such as '<extra>'" in said) == (
        name == "a longer tokenizer"
    )


@pytest.mark.parametrize("part", ["strftime_now('%d')", "[1, 2] | random"])
def test_a_template_that_changes_is_doubted(
    folder: Path, place: str, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{{ " + part + " }}")
    assert dry_run(folder, place) == 0
    assert "warning: the chat template holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rollout.max_completion_tokens=1749"], "set rollout.max_completion_tokens to at most 1748"),
        (["data.max_prompt_tokens=2048"], "set data.max_prompt_tokens to at most 2032"),
        (["data.max_prompt_tokens=9000", "rollout.max_completion_tokens=9000"], "their sum may be 2048"),
        (["rollout.kv_cache_mb=1", "rollout.max_completion_tokens=1748"], "set rollout.kv_cache_mb to 2 or more"),
        (["data.image_size=100000"], "data.image_size = 100000"),
        (["data.image_size=2"], "data.image_size = 2"),
        (["data.image_size=4096"], "data.image_size = 4096 takes 5"),
        (["data.image_size=2000", "model.max_pixels=4000000"], "data.image_size = 2000 takes 5"),
        (["model.min_pixels=4000000", "model.max_pixels=8000000"], "prompt of 5"),
        (["model.max_pixels=99999999999"], "model.max_pixels = 99999999999"),
        (["data.max_image_megapixels=1e9"], "data.max_image_megapixels"),
    ],
)
def test_lengths_and_sizes_that_do_not_fit(
    folder: Path, place: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert dry_run(folder, place, *words) == 2
    assert said in capsys.readouterr().err


def test_lengths_that_just_fit(folder: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rollout.max_completion_tokens=1748", "rollout.kv_cache_mb=2", "data.image_size=1024"]
    assert dry_run(folder, place, *words, "data.max_prompt_tokens=300") == 2  # of pictures: 400 tokens and more
    assert dry_run(folder, place, *words, "data.max_prompt_tokens=300", "data.image_size=56") == 0


def test_the_cpus_own_cache_is_held_against_the_lengths_too(tmp_path: Path) -> None:
    """8 MB a thousand tokens, of which 64 MB hold not 32,000."""
    from transformers import Qwen2VLConfig

    sizes = {"num_hidden_layers": 16, "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 1}
    text: Any = {**sizes, "max_position_embeddings": 65536}
    lengths = {"data": {"max_prompt_tokens": 32000}, "rollout": {"gpus_per_engine": 0}}
    config = Config.model_validate({**lengths, "learner": {"gpus_per_rank": 0}, "cluster": {"device": "cpu"}})
    with pytest.raises(Exception, match="null, which is 64 on a CPU") as caught:
        check_lengths_fit(config, Qwen2VLConfig(text_config=text))
    least = count_least_cache(Qwen2VLConfig(text_config=text).get_text_config(), longest=33024, block=32, itemsize=2)
    assert f"set rollout.kv_cache_mb to {-(-least // 2**20)} or more" in str(caught.value)


SHORT: dict[str, Any] = {"data": {"max_prompt_tokens": 300}, "rollout": {"max_completion_tokens": 16}}


def knows_ascii_alone(found: Any) -> None:
    """A tokenizer that takes all else for nothing."""
    found["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[^\\x00-\\x7f]"}, "content": ""}


@pytest.mark.parametrize("text", ["", "\u200b", "日本"])
def test_texts_without_tokens(folder: Path, text: str) -> None:
    edit("tokenizer.json", knows_ascii_alone)(folder)
    model = read_model(Config.model_validate({"model": {"path": str(folder), "dtype": "float32"}, **SHORT}))
    assert model.encoder.count(text) == 0 and model.encoder.count("one") > 0


def test_a_label_the_model_cannot_say_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit("tokenizer.json", knows_ascii_alone)(folder)
    place = image_folder(tmp_path / "foreign", {"日本": 6, "two": 6})
    assert dry_run(folder, place) == 2
    assert "labels that the model's tokenizer has no tokens for (1): '日本'" in capsys.readouterr().err
    assert dry_run(folder, place, "data.aliases={日本: [japan]}") == 0


def test_an_evaluation_looks_at_the_weights_too(folder: Path, place: str) -> None:
    without_tensors(folder)
    words = ["--model", str(folder), "--data", f"x={place}", "--config", RECIPE, "data.max_prompt_tokens=300"]
    ((name, config),) = parse(words).models.items()
    with pytest.raises(ModelError, match="tensors are not there"):
        read_target(config, name, held_out=False, say=print)


def test_the_learner_refuses_what_it_would_make_anew(folder: Path) -> None:
    without_tensors(folder)
    with pytest.raises(ModelError, match=r"lack 13 tensors of the model\n.*model\.language_model"):
        load_model(str(folder), Config.model_validate({"model": {"path": str(folder), "dtype": "float32"}}))


@pytest.mark.parametrize(
    "given",
    [{"temperature": 0.01}, {"do_sample": False, "top_p": 0.001, "top_k": 1}, {"do_sample": True, "temperature": 0.01}],
)
def test_an_export_keeps_the_generation_config_of_its_base(folder: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    """transformers refuses to write many that are published: the run would fail at its end."""
    edit("generation_config.json", lambda found: found.update(given))(folder)
    config = Config.model_validate({"model": {"path": str(folder), "dtype": "float32"}})
    export_model(load_model(str(folder), config).state_dict(), str(folder), config, tmp_path / "export")
    written = (tmp_path / "export/generation_config.json").read_bytes()
    assert written == (folder / "generation_config.json").read_bytes()


# -- reward models -----------------------------------------------------------------------------------------------------


@pytest.fixture
def reward_model(tmp_path: Path) -> Path:
    """Folder of a random reward model."""
    return build_reward_model(tmp_path / "reward")


def without_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def more_words(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_head, r"no trained score head.*\n.*score\.weight"),
        (without_tensors, "no trained score head, or only some of its weights"),
        (without("model.safetensors"), "has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "the file is empty"),
        (edit("tokenizer.json", empty_vocabulary), "another model's tokenizer, or none"),
        (more_words, r"ids up to \d+, and \d+ rows"),
        (edit("config.json", lambda found: found.update(hidden_size=16)), "another shape"),
    ],
)
def test_a_reward_model_is_looked_at_too(reward_model: Path, change: Change, said: str) -> None:
    functions = RewardConfig(functions={f"model:{reward_model}": 1.0})
    check_functions(functions)
    change(reward_model)
    with pytest.raises(ModelError, match=said):
        check_functions(functions)


def test_float16_weights_are_trained_in_the_configured_dtype(folder: Path) -> None:
    tensors = {name: one.half() for name, one in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = Config.model_validate({"model": {"path": str(folder), "dtype": "float32"}, **SHORT})
    read_model(config)
    assert load_model(str(folder), config).dtype == torch.float32
