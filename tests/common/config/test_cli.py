"""The command line: what each way of saying a thing resolves to, and what each mistake is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.config.cli import DEFAULT_RECIPE, GPU_RECIPE, dump, parse
from common.config.renamed import RENAMED
from common.config.schema import Config, flatten
from common.config.settings import keys
from common.errors import ConfigError

RECIPES = Path(__file__).parents[3] / "deploy/recipes"
OWN = ["--config", str(RECIPES / "qwen2vl-2b.yaml")]


def recipe(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(argv: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    return str(caught.value)


@pytest.mark.parametrize(("builds", "recipe"), [("cpu", DEFAULT_RECIPE), ("cuda", GPU_RECIPE), (None, DEFAULT_RECIPE)])
def test_no_argument_is_the_embedded_recipe(monkeypatch: pytest.MonkeyPatch, builds: str | None, recipe: Path) -> None:
    monkeypatch.setattr("common.config.cli.installed_device", lambda: builds)
    invocation = parse([])
    assert invocation.config == parse(["--config", str(recipe)]).config
    assert invocation.config.cluster.device == (builds or "cpu")
    assert not invocation.dry_run and not invocation.print_config
    assert invocation.config.model.path == "embedded:tiny"
    assert invocation.config.learner.lr == 5e-4


@pytest.mark.parametrize("path", sorted(RECIPES.glob("digits*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_digits_is_brought_to_one_gpu(path: Path) -> None:
    config = parse(["--config", str(path), "--config", str(GPU_RECIPE)]).config
    learner, rollout = config.learner, config.rollout
    assert config.cluster.device == "cuda"
    assert 0 < learner.ranks * learner.gpus_per_rank + rollout.min_engines * rollout.gpus_per_engine <= 1
    own = parse(["--config", str(path)]).config
    assert (config.method, config.data, config.steps) == (own.method, own.data, own.steps)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_resolves_and_survives_a_dump(path: Path, tmp_path: Path) -> None:
    config = parse(["--config", str(path)]).config
    assert config.name != Config().name, "a recipe names its run"
    assert parse(["--config", str(recipe(tmp_path, dump(config)))]).config == config


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--rollout.group-size", "8"], "rollout.group_size", 8),
        (["--rollout.group_size=8"], "rollout.group_size", 8),
        (["rollout.group-size=8"], "rollout.group_size", 8),
        (["rollout.group_size=8", "--rollout.group-size", "6"], "rollout.group_size", 6),
        (["learner.lr=5e-4"], "learner.lr", 5e-4),
        (["--learner.lr", "1E-6"], "learner.lr", 1e-6),
        (["learner.betas=[0.9,0.99]"], "learner.betas", (0.9, 0.99)),
        (["reward.functions={accuracy: 1.0, format: 0.5}"], "reward.functions", {"accuracy": 1.0, "format": 0.5}),
        (["reward={timeout_s: 5}"], "reward.timeout_s", 5.0),
        (["resume=auto"], "resume", "auto"),
        (["resume=null"], "resume", None),
        (["name=null"], "name", "null"),
        (["name=2026"], "name", "2026"),
        (["seed=7"], "seed", 7),
        (["--seed", "7"], "seed", 7),
        (["model.revision=0123456"], "model.revision", "0123456"),
        (["model.freeze-vision=yes"], "model.freeze_vision", True),
        (["data.image_size=null"], "data.image_size", None),
        (["data.question=One of: [a, b] # or 'c'?"], "data.question", "One of: [a, b] # or 'c'?"),
        (["--run-dir", "runs/a=b"], "run_dir", "runs/a=b"),
        (["--profile", "steps=3:5"], "tracking.profile_steps", (3, 5)),
        (["--profile=steps=3:5"], "tracking.profile_steps", (3, 5)),
        (["--run-dir=runs/x: y"], "run_dir", "runs/x: y"),
    ],
)
def test_override(words: list[str], key: str, value: Any) -> None:
    for argv in (OWN + words, words + OWN):
        assert flatten(parse(argv).config)[key] == value


def test_flags_stand_anywhere() -> None:
    invocation = parse(["--dry-run", "steps=30", "--print-config"])
    assert (invocation.dry_run, invocation.print_config, invocation.config.steps) == (True, True, 30)


def test_recipes_merge_in_order_and_the_command_line_wins(tmp_path: Path) -> None:
    first = recipe(
        tmp_path, "steps: 5\nreward: {functions: {accuracy: 1, format: 1}}\nlearner: {lr: 1e-3, eps: 1e-7}", "a"
    )
    second = recipe(tmp_path, "reward: {functions: {format: 2}}\nlearner: {lr: 2e-3, betas: [0.5, 0.6]}\ndata:\n", "b")
    invocation = parse(["steps=7", "--config", str(first), f"--config={second}"])
    config = invocation.config
    assert (config.steps, config.learner.lr, config.learner.eps) == (7, 2e-3, 1e-7)
    assert config.reward.functions == {"format": 2.0}
    assert config.learner.betas == (0.5, 0.6)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (
            "rollout.num_engines=4",
            "rollout.num_engines = 4 (command line): no such key, perhaps you meant rollout.engines",
        ),
        ("rolout.engines=4", "perhaps you meant rollout.engines"),
        ("generation.group_size=4", "perhaps you meant rollout.group_size"),
        ("engines=4", "perhaps you meant rollout.engines"),
        ("every=4", "perhaps you meant evaluation.every or checkpoint.every"),
        ("lerner={lr: 1}", "perhaps you meant learner"),
        ("reward.functions.format=1", "perhaps you meant reward.functions"),
        ("zzz=4", "zzz = 4 (command line): no such key\n"),
        ("rollout=4", "rollout is a section"),
        ("evaluation.at=[1]", "evaluation.at = [1] (command line): evaluation.at is now called evaluation.pass_at_k"),
        ("evaluation={at: [1]}", "(command line): evaluation.at is now called evaluation.pass_at_k"),
        ("rollout.engines=0", "rollout.engines = 0 (command line): must be integer >= 1"),
        ("rollout.engines=true", "rollout.engines = true (command line): must be integer >= 1"),
        ("rollout.engines=four", "must be integer >= 1"),
        ("rollout.engines={min: 2}", "or {min: integer >= 1 and <= 1024, max: integer >= 1 and <= 1024}"),
        ("rollout.engines={min: 0, max: 2}", "or {min: integer >= 1"),
        ("rollout.engines={least: 1, most: 2}", "or {min: integer >= 1"),
        ("rollout.top_p=1.5", "must be number > 0 and <= 1"),
        ("seed=-1", "seed = -1 (command line): must be integer >= 0 and < 18446744073709551616"),
        ("steps=99999999999", "must be integer >= 1 and <= 10000000"),
        ("tracking.samples=99999999999", "must be integer >= 1 and <= 2147483647"),
        ("tracking.samples=0", "must be integer >= 1"),
        ("learner.lr=nan", "must be number >= 1e-30 and <= 1"),
        ("learner.lr=inf", "must be number >= 1e-30 and <= 1"),
        ("learner.zero_stage=4", "must be integer >= 0 and <= 3"),
        ("learner.schedule=cosin", "must be linear | cosine | constant"),
        ("learner.betas=[0.9", "learner.betas = [0.9 (command line)"),
        ("learner.betas=[0.9,0.99,1]", "must be [number >= 0 and <= 0.999999, number >= 0 and <= 0.999999]"),
        ("reward.functions={}", "must be {name: number >= -1e+06 and <= 1e+06, ...}"),
        ("reward.functions={a: 1, a: 2}", "must be {name: number >= -1e+06 and <= 1e+06, ...}"),
        ("data.image_size=big", "must be integer >= 4 and <= 4096 or null"),
        ("weights.transport=nccl", "weights.transport = nccl needs cluster.device = cuda"),
        ("learner.ranks=3", "learner.ranks = 3 does not divide rollout.prompts_per_step = 32"),
        ('evaluation.sets={x: ""}', "the set 'x' names no place"),
        ('evaluation.sets={x: "@"}', "the set 'x' names no place"),
        ('evaluation.sets={x: " "}', "the set 'x' names no place"),
        ('evaluation.sets={"": "@test"}', "the set '' has no name"),
        ("rollout.labels==x", "'' is no name of a label"),
        ("learner.labels=[{a b: x}]", "'a b' is no name of a label"),
        ("cluster.address=http://x:1", "not a scheme of Ray's"),
        ("cluster.address=1.2.3.4:99999", "99999 is no port"),
        ("cluster.address=head:0", "0 is no port"),
        ("cluster.address=a b:6379", "blanks in it"),
        ("engines", "neither a flag nor key=value"),
        ("--steps", "--steps has no value"),
        ("--config", "--config has no value"),
        ("--profile=3:5", "write --profile steps=3:5"),
        ("--profile=steps=5", "write --profile steps=3:5"),
        ("--profile=steps=5:3", "tracking.profile_steps = [5, 3] holds no step"),
        ("--profile=steps=a:3", "must be [integer >= 0, integer >= 0] or null"),
        ("steps=", "steps has no value"),
        ("model.path=Qwen/Qwen2-VL-2B-Instruct", "deploy/recipes/qwen2vl-2b.yaml"),
        ("data.path=photos", "data.path was changed but no recipe was given"),
    ],
)
def test_mistake_on_the_command_line(word: str, told: str) -> None:
    assert told in refusal([word]) + "\n"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--dry_run", "perhaps you meant --dry-run"),
        ("--dryrun", "perhaps you meant --dry-run"),
        ("--Dry-Run=true", "perhaps you meant --dry-run"),
        ("--print_config", "perhaps you meant --print-config"),
        ("--confg", "perhaps you meant --config"),
        ("--lerning-rate", "--help"),
        ("--learner.lrr", "perhaps you meant --learner.lr"),
        ("--nonsense", "--help"),
    ],
)
@pytest.mark.parametrize("after", [[], ["steps=1"], ["--plan"]], ids=str)
def test_an_option_that_is_none_is_named(word: str, meant: str, after: list[str]) -> None:
    told = refusal([word, *after])
    assert f"there is no option {word.partition('=')[0]}" in told and meant in told


@pytest.mark.parametrize("address", ["auto", "local", "ray://head:10001", "head-0.ns.svc:6379", "[::1]:6379", "head"])
def test_addresses_that_may_be_there_are_taken(address: str) -> None:
    assert parse([f"cluster.address={address}"]).config.cluster.address == address


def test_labels_of_ray_are_taken() -> None:
    (choice,) = parse(["rollout.labels=ray.io/market-type=spot,role=rollout"]).config.rollout.labels
    assert choice == {"ray.io/market-type": "spot", "role": "rollout"}


def test_a_value_is_not_taken_from_the_next_flag() -> None:
    assert "--steps has no value" in refusal(["--steps", "--dry-run"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: 5\nrollout:\n  engins: 4", "recipe.yaml:3): no such key, perhaps you meant rollout.engines"),
        ("rolout:\n  engines: 4", "recipe.yaml:1): no such key, perhaps you meant rollout"),
        ("learner:\n  lr: fast", "recipe.yaml:2): must be number >= 1e-30 and <= 1"),
        (
            "evaluation:\n  at: [1]",
            'evaluation.at = ["1"] (RECIPE:2): evaluation.at is now called evaluation.pass_at_k',
        ),
        ("steps: 0", "recipe.yaml:1): must be integer >= 1"),
        ("steps:\n", "steps = null"),
        ("steps: 5\nsteps: 6", "line 2: key steps is given twice"),
        ("rollout: {engines: 1}\nrollout: {top_k: 8}", "line 2: key rollout is given twice"),
        ("reward:\n  functions:\n    accuracy: 1\n    accuracy: 2", "line 4: key accuracy is given twice"),
        ("learner.lr: 1e-4\nlearner: {lr: 1e-5}", "line 1: key learner.lr is given twice"),
        ("learner: {beta: 0, lr: 1e-5}\nlearner.lr: 1e-5", "line 2: key learner.lr is given twice"),
        ("steps: 5\n bad: [", "line 2"),
        ("- steps", "line 1: a recipe is a mapping of keys"),
        ("[a]: 1", "line 1: a key must be one word"),
        ("name: !env HOME", "line 1: could not determine a constructor for the tag '!env'"),
        ("name: !!python/name:os.system", "line 1: could not determine a constructor"),
        ("learner:\n  warmup_steps: 9\nsteps: 9", "leaves no step of steps = 9"),
    ],
)
def test_mistake_in_a_recipe(text: str, told: str, tmp_path: Path) -> None:
    path = recipe(tmp_path, text)
    assert told.replace("RECIPE", str(path)) in refusal(["--config", str(path)])


def test_two_spellings_of_different_keys_are_no_mistake(tmp_path: Path) -> None:
    """Nor is what a merge brings, which the mapping itself changes."""
    text = "learner: &base {lr: 1e-4, beta: 0}\nlearner.eps: 1e-7\nrollout.top_k: 5\nrollout: {top_p: 0.5}"
    config = parse(["--config", str(recipe(tmp_path, text))]).config
    assert (config.learner.lr, config.learner.eps, config.rollout.top_k, config.rollout.top_p) == (1e-4, 1e-7, 5, 0.5)


def test_new_names_are_keys_and_old_ones_are_not() -> None:
    for old, new in RENAMED.items():
        if "." in old:
            assert new in keys() and old not in keys()


def test_a_recipe_extends_others_that_lie_beside_it_or_below(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    recipe(
        tmp_path / "below", "steps: 5\nlearner: {lr: 1e-3, eps: 1e-7}\nreward: {functions: {format: 1}}", "base.yaml"
    )
    path = recipe(tmp_path, "extends: below/base.yaml\nlearner: {lr: 2e-3}\nreward: {functions: {accuracy: 1}}")
    config = parse(["--config", str(path)]).config
    assert (config.steps, config.learner.lr, config.learner.eps) == (5, 2e-3, 1e-7)
    assert config.reward.functions == {"accuracy": 1.0}


def test_a_base_that_several_extend_is_read_once(tmp_path: Path) -> None:
    recipe(tmp_path, "seed: 1\nname: base", "base.yaml")
    data = recipe(tmp_path, "extends: base.yaml\nseed: 2", "data.yaml")
    mode = recipe(tmp_path, "extends: base.yaml\ndata: {mode: think}", "mode.yaml")
    both = recipe(tmp_path, "extends: [data.yaml, mode.yaml]", "both.yaml")
    for argv in (["--config", str(both)], ["--config", str(data), "--config", str(mode)]):
        config = parse(argv).config
        assert (config.name, config.seed, config.data.mode) == ("base", 2, "think")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: recipe.yaml", "recipe.yaml extends itself"),
        ("extends: back.yaml", "recipe.yaml -> back.yaml -> recipe.yaml"),
        ("extends: none.yaml", "none.yaml (extended by recipe.yaml) cannot be read\n  got:    No such file"),
        ("extends: list.yaml", "list.yaml (extended by recipe.yaml) is not valid\n  got:    line 1: a recipe is"),
        ("extends: ../other.yaml", "extends a file outside its folder"),
        ("extends: link.yaml", "extends a file outside its folder"),
        ("extends: /etc/passwd", "extends a file outside its folder"),
        ("\nextends: ../other.yaml", "recipe.yaml:2)"),
        ("extends:", "takes a file name or a list of them"),
        ("extends: {a: b}", "takes a file name or a list of them"),
        ("extends: [[a]]", "takes a file name or a list of them"),
        ("data: {extends: back.yaml}", "data.extends = back.yaml"),
    ],
)
def test_mistake_in_what_a_recipe_extends(text: str, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    recipe(tmp_path, "steps: 5", "other.yaml")
    recipe(folder, "extends: recipe.yaml", "back.yaml")
    recipe(folder, "- steps", "list.yaml")
    (folder / "link.yaml").symlink_to("../other.yaml")
    assert told in refusal(["--config", str(recipe(folder, text))])


def test_of_steps_and_epochs_the_later_place_holds(tmp_path: Path) -> None:
    steps = recipe(tmp_path, "steps: 300\nlearner: {warmup_steps: 299}", "steps.yaml")
    epochs = recipe(tmp_path, "extends: steps.yaml\nepochs: 50", "epochs.yaml")
    assert parse(["--config", str(epochs)]).config.epochs == 50
    for words in (["--config", str(epochs), "steps=400"], ["--config", str(epochs), "--config", str(steps)]):
        config = parse(words).config
        assert config.epochs is None and config.steps in (300, 400)
    assert parse(["steps=20", "epochs=null"]).config.steps == 20
    assert parse(["epochs=null"]).config.steps == 150
    assert "steps = 5 with epochs = 2: leave one out (steps: command line, epochs: command line)" in refusal(
        ["steps=5", "epochs=2"]
    )
    both = recipe(tmp_path, "steps: 5\nepochs: 2")
    assert f"steps = 5 with epochs = 2: leave one out (steps: {both}:1" in refusal(["--config", str(both)])


def test_unreadable_recipes_are_named(tmp_path: Path) -> None:
    assert f"recipe {tmp_path}/none.yaml cannot be read" in refusal(["--config", f"{tmp_path}/none.yaml"])
    assert f"recipe {tmp_path} cannot be read" in refusal(["--config", str(tmp_path)])
    (tmp_path / "latin").write_bytes(b"name: caf\xe9")
    assert f"recipe {tmp_path}/latin is not valid" in refusal(["--config", f"{tmp_path}/latin"])


def test_all_problems_come_at_once_one_line_each(tmp_path: Path) -> None:
    path = recipe(tmp_path, "rollout:\n  engins: 4\nlearner:\n  lr: -1\n")
    lines = refusal(["--config", str(path), "steps=0", "foo.bar=1"]).splitlines()
    for key in ("rollout.engins", "learner.lr", "steps", "foo.bar"):
        assert sum(f"{key} = " in line for line in lines) == 1


def test_misfits_say_where_each_side_came_from(tmp_path: Path) -> None:
    path = recipe(tmp_path, "steps: 5\nrollout:\n  prompts_per_step: 8\n")
    told = refusal(["--config", str(path), "learner.ranks=3", "learner.warmup_steps=5"])
    assert f"(learner.ranks: command line, rollout.prompts_per_step: {path}:3)" in told
    assert f"(learner.warmup_steps: command line, steps: {path}:1)" in told


@pytest.mark.parametrize(
    "text", ["null", "~", "5e-4", "2026-01-01", "yes", " a: b #c", "é\n[x]", "'q'", "=", "<<", "0x1"]
)
def test_dump_keeps_awkward_text(text: str, tmp_path: Path) -> None:
    config = parse([*OWN, f"name={text}", f"resume=x{text}", "learner.lr=3e-7"]).config
    assert config.name == text
    assert parse(["--config", str(recipe(tmp_path, dump(config)))]).config == config


def test_an_empty_recipe_is_the_class_defaults(tmp_path: Path) -> None:
    assert parse(["--config", str(recipe(tmp_path, "# nothing yet\n"))]).config == Config()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_key_with_type_default_and_docstring(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse([flag])
    shown = capsys.readouterr().out
    assert leaving.value.code == 0
    assert not [key for key in flatten(Config()) if f"  {key}  " not in shown]
    assert "rollout: How completions are sampled." in shown
    assert "rollout.group_size  integer >= 2 and <= 16384  default 4\n      G, completions a prompt." in shown


def test_importing_the_command_line_stays_light() -> None:
    heavy = "{'torch', 'transformers', 'ray', 'datasets', 'vllm', 'rich', 'numpy'}"
    script = f"import sys; from common.config import cli; cli.parse([]); print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
