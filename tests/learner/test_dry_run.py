"""A dry run finds what a run would find before it touches a cluster: the same reasons through both, the same words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from common.config import cli
from common.config.schema import Config
from common.storage.output import WriteReport, open_output
from learner.driver.preflight.capacity import check_machine, count_resources
from learner.driver.preflight.learnable import warn_of_few_rows, warn_of_nothing_to_learn
from learner.driver.preflight.start import warn_of_room
from learner.main import main
from learner.storage.checkpoint import DriverState, write_state
from learner.storage.checkpoint_folder import CheckpointFolder
from learner.storage.run_folder import RunFolder
from tests.helpers.planted import plant_in_torch_file

Case = Callable[[Path], list[str]]  # makes what is wrong in a folder, and returns the command line


class ReachedError(Exception):
    """The run went on to its cluster."""


@pytest.fixture(autouse=True)
def _no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise ReachedError

    monkeypatch.setattr("learner.driver.open_run.connect", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


def words(*said: str) -> Case:
    """A command line that is wrong anywhere."""
    return lambda _: list(said)


def write_run(folder: Path, *, rows: int = 1397, plant: Path | None = None) -> Path:
    """Write a run folder with a checkpoint of step 1, on so many rows; `plant` puts code there that makes a folder."""
    config = cli.parse([f"run_dir={folder}"]).config
    store = CheckpointFolder(folder / "checkpoints", keep=5)
    weights = folder / "weights"
    torch.save({"x": torch.zeros(2)}, weights)
    if plant:
        plant_in_torch_file(weights, plant)
    stream = {"rows": rows, "epoch": 0, "position": 32, "deferred": []}
    with store.write_checkpoint(1, estimate=0) as draft:
        output = open_output(draft.place)
        with output.open("rank-0.pt") as file:
            file.write(weights.read_bytes())
        draft.reports = [WriteReport(by="rank 0", files=tuple(output.files))]
        draft.own = write_state(draft.place, DriverState(step=1, config=config, stream=stream, counts={}, control={}))
    weights.unlink()
    (folder / "config.yaml").write_text(cli.dump(config))
    return folder


def another_run(here: Path) -> list[str]:
    return [f"run_dir={write_run(here / 'run')}"]


def a_file(here: Path) -> list[str]:
    (here / "file").touch()
    return ["run_dir=file"]


def below_a_file(here: Path) -> list[str]:
    (here / "file").touch()
    return ["run_dir=file/run"]


def a_link_to_itself(here: Path) -> list[str]:
    (here / "link").symlink_to("link")
    return ["run_dir=link"]


def inside_another_run(here: Path) -> list[str]:
    (write_run(here / "run") / "environment.json").touch()
    return ["run_dir=run/deeper/again"]


def strangers_files(here: Path) -> list[str]:
    (here / "home").mkdir()
    (here / "home/thesis.txt").touch()
    return ["run_dir=home"]


def another_rate(here: Path) -> list[str]:
    return [f"resume={write_run(here / 'run')}", "learner.lr=1e-3"]


def other_steps(here: Path) -> list[str]:
    return ["resume=auto", f"run_dir={write_run(here / 'run')}", "steps=77"]


def other_rows(here: Path) -> list[str]:
    return [f"resume={write_run(here / 'run', rows=1000)}"]


def a_damaged_checkpoint(here: Path) -> list[str]:
    step = write_run(here / "run") / "checkpoints/step-000001"
    (step / "rank-0.pt").write_bytes(b"damaged")
    return [f"resume={step}"]


def only_damaged_checkpoints(here: Path) -> list[str]:
    (write_run(here / "run") / "checkpoints/step-000001/state.json").unlink()
    return ["resume=auto", "run_dir=run"]


def code_in_a_checkpoint(here: Path) -> list[str]:
    return [f"resume={write_run(here / 'run', plant=here / 'marker')}"]


def no_checkpoint(here: Path) -> list[str]:
    shutil.rmtree(write_run(here / "run") / "checkpoints")
    return ["resume=run"]


def a_file_of_a_run(here: Path) -> list[str]:
    return [f"resume={write_run(here / 'run') / 'config.yaml'}"]


def two_run_folders(here: Path) -> list[str]:
    return [f"resume={write_run(here / 'run')}", "run_dir=elsewhere"]


AT_ONCE: dict[str, tuple[Case, str]] = {
    # where the run is to be
    "another run": (another_run, "holds checkpoints, config.yaml"),
    "inside another run": (inside_another_run, "lies inside that of another run"),
    "a bucket with a blank": (words("run_dir=s3://b u/x"), "no bucket can have that name"),
    "strangers' files": (strangers_files, "thesis.txt"),
    "a file": (a_file, "cannot be written"),
    "below a file": (below_a_file, "cannot be written"),
    "below /proc": (words("run_dir=/proc/1/run"), "cannot be written"),
    "a link to itself": (a_link_to_itself, "link"),
    "a long part": (words(f"run_dir={'x' * 300}"), "too long"),
    "a NUL": (words("run_dir=a\0b"), "holds a NUL"),
    "a bucket without a name": (words("run_dir=s3://"), "s3://"),
    "another scheme": (words("run_dir=ftp://host/run"), "ftp"),
    "a name of two parts": (words("name=a/b"), "name cannot be part"),
    "a name that leads up": (words("name=.."), "name cannot be part"),
    "a name with ESC": (words("name=a\x1b[2J"), "name cannot be part"),
    "a name with NUL": (words("name=a\0b"), "holds a NUL"),
    "a name of 300 letters": (words(f"name={'n' * 300}"), "up to 200 bytes"),
    "a name of 255 bytes in 85 letters": (words(f"name={'€' * 85}"), "up to 200 bytes"),
    # where it goes on
    "no run to resume": (words("resume=nowhere"), "no such folder"),
    "no checkpoint in the run named": (no_checkpoint, "has no checkpoint to go on from"),
    "a file to resume": (a_file_of_a_run, "config.yaml (a file, no folder)"),
    "another case of auto": (words("resume=Auto"), "perhaps you meant auto"),
    "a NUL to resume": (words("resume=a\0b"), "holds a NUL"),
    "two run folders": (two_run_folders, "resume and run_dir name two run folders"),
    # what this machine has
    "engines": (words("rollout.engines=50"), "50 x an engine"),
    "ranks": (words("learner.ranks=32"), "the learner's 32 ranks"),
    "a large engine": (words("rollout.cpus_per_engine=5000"), "5000 CPU"),
    "reward workers": (words("reward.workers=900", "reward.cpus_per_worker=1"), "900 x a reward worker"),
    "labels": (words("rollout.labels=role=rollout"), "with role=rollout"),
    "a KV cache": (words("rollout.kv_cache_mb=2000000000"), "larger than the memory of this machine"),
    # bounds
    "a gap below rounding": (words("learner.max_logprob_gap=1e-9"), "learner.max_logprob_gap"),
    "a seed": (words("seed=-1"), "integer >= 0"),
    "a cold temperature": (words("rollout.temperature=0.005"), "number >= 0.01"),
    "a hot temperature": (words("rollout.temperature=1000"), "<= 2"),
    "weights of 0": (words("reward.functions={accuracy: 0}"), "nothing could be learned"),
    "a profile after the end": (words("tracking.profile_steps=[200, 201]"), "begins after the last step"),
    "nccl on a CPU": (words("weights.transport=nccl"), "use object_store on CPU"),
    # rewards
    "a reward nobody knows": (words("reward.functions={acuracy: 1}"), "perhaps you meant accuracy"),
    "a package nobody has": (words("reward.functions={no_such_package:f: 1}"), "no_such_package"),
    "a reward model that is not there": (words("reward.functions={model:/no/such/folder: 1}"), "/no/such/folder"),
}

LATER: dict[str, tuple[Case, str]] = {
    "data that is not there": (words("--config", "deploy/recipes/laptop.yaml", "data.path=nothing"), "nothing"),
    "a split that is not there": (words("data.split=validation"), "validation"),
    "held-out data that is not there": (words("data.eval_path=nothing"), "nothing"),
    "a set that is not there": (words("evaluation.sets={cars: nothing}"), "nothing"),
    "a measure nobody takes": (words("checkpoint.best_by=cars/accuracy"), "is not measured"),
    "more prompts than rows": (words("rollout.prompts_per_step=2000"), "1397 rows"),
    "a prompt that is too long": (words("data.max_prompt_tokens=16"), "prompt of 17 tokens"),
    "an answer that is too long": (words("method=exact", "rollout.max_completion_tokens=1"), "of 2 tokens is over 1"),
    "a warm-up over all epochs": (words("epochs=2", "learner.warmup_steps=88"), "are 88 steps"),
    "too many epochs": (words("epochs=10000000"), "lower epochs"),
    "a profile after the epochs": (words("epochs=1", "tracking.profile_steps=[50, 52]"), "begins after the last step"),
    "a reward without its length": (words("reward.functions={length: 1}"), "no length to aim at"),
    "a reward without thoughts": (words("reward.functions={confidence: 1}"), "no"),
    "another rate": (another_rate, "learner.lr: 0.0005 then, 0.001 now"),
    "other steps": (other_steps, "steps: 150 then, 77 now"),
    "other rows": (other_rows, "1000 rows then, 1397 now"),
    "a damaged checkpoint": (a_damaged_checkpoint, "is not sound"),
    "only damaged checkpoints": (only_damaged_checkpoints, "none of the 1 checkpoints is sound"),
    "code in a checkpoint": (code_in_a_checkpoint, "mkdir"),
}


def refuse(case: Case, here: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what a dry run and a run print on stderr; both are refused, and leave the folder as it was."""
    here.joinpath("deploy").symlink_to(Path(__file__).parents[2] / "deploy")
    said = case(here)
    before = sorted(path for path in here.rglob("*") if path.name != ".lock")
    printed = []
    for dry in ([], ["--dry-run"]):
        assert main([*said, *dry]) == 2
        printed.append(capsys.readouterr().err)
        assert sorted(path for path in here.rglob("*") if path.name != ".lock") == before
    return printed


def check(case: Case, told: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, dry = refuse(case, here, capsys)
    assert run == dry
    assert run.startswith("error: ") and run.count("error: ") == 1
    assert "\n  got: " in run and "\n  remedy: " in run
    assert told in run
    assert len(run) < 2000
    assert not (here / "marker").exists()


@pytest.mark.parametrize(("case", "told"), AT_ONCE.values(), ids=AT_ONCE)
def test_refused_at_once(case: Case, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(case, told, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "told"), LATER.values(), ids=LATER)
def test_refused_once_data_and_model_are_read(
    case: Case, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(case, told, tmp_path, capsys)


def test_a_folder_in_use_is_refused_by_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = RunFolder.open(Config(run_dir=str(tmp_path / "run")), now=datetime.now(UTC))
    run, dry = refuse(words("run_dir=run"), tmp_path, capsys)
    first.close()
    assert run == dry and "in use by a live run" in run


@pytest.mark.parametrize("said", [["run_dir=a/b/run"], [], ["resume=auto"], ["resume=auto", "run_dir=a/run"]], ids=str)
def test_a_dry_run_that_finds_nothing_leaves_nothing_and_the_run_goes_on(
    said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*said, "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "nothing was started" in capsys.readouterr().out
    with pytest.raises(ReachedError):
        main([*said, "checkpoint.every=0"])


def test_a_dry_run_says_where_a_resumed_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main(["resume=run", "--dry-run"]) == 0
    assert "going on from step 1" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_cluster_is_not_asked_and_the_dry_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    said = ["rollout.engines=50", "rollout.labels=role=rollout", "cluster.address=10.0.0.9:6379"]
    assert main([*said, "--dry-run"]) == 0
    assert "the cluster at 10.0.0.9:6379 was not asked whether it has them" in capsys.readouterr().out
    with pytest.raises(ReachedError):
        main(said)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["rollout.top_k=1"], "rollout.top_k = 1 samples the likeliest token alone"),
        (["rollout.top_p=0.01"], "rollout.top_p = 0.01 leaves hardly more"),
        (["rollout.temperature=0.01"], "rollout.temperature = 0.01 is close to greedy"),
        (["reward.functions={format: 1, accuracy: 0}"], "reward format alone earns nearly every answer the same"),
        (
            ["reward.functions={accuracy: 1, repetition: 1}", "reward.repetition_ngram=4"],
            "reward repetition is 0 for every answer",
        ),
        (["lora.alpha=8", "exact.advantage=raw"], "lora.alpha = 8, exact.advantage = raw"),
        (["reward.length_target=8"], "without effect under the other settings: reward.length_target = 8"),
        (["reward.repetition_ngram=4"], "reward.repetition_ngram = 4"),
        (["data.taxonomy={cat: animal}"], "data.taxonomy = "),
        (["reward.length_target=8", "reward.functions={accuracy: 1, tests.helpers.hostile_rewards:length: 1}"], None),
        (["reward.length_target=8", "reward.functions={accuracy: 1, length: 1}"], None),
        (["lora.rank=4", "lora.alpha=8"], None),
        (["lora.alpha=32"], None),
        (["method=exact", "exact.advantage=raw"], None),
        (["learner.lr=1e-20"], "learner.lr = 1e-20 is too small"),
        (["learner.beta=500"], "learner.beta = 500 lets the KL outweigh"),
        (["learner.ranges=2", "method=exact"], "learner.ranges = 2 with method = exact: a step is learned once all"),
        (["learner.ranges=2", "signal.max_prompts=2"], "learner.ranges = 2 with signal.max_prompts = 2"),
        (["learner.ranges=2", "objective.minibatches=4"], "learner.ranges = 2 with objective.minibatches = 4"),
        (["learner.ranges=2", "objective.kl_in=reward"], "learner.ranges = 2 with objective.kl_in = reward"),
        (["learner.ranges=2", "objective.advantage=batch"], "learner.ranges = 2 with objective.advantage = batch"),
        (["learner.ranges=2", "objective.preset=reinforce_pp"], "with objective.advantage = whitened"),
        (["learner.ranges=2", "objective.entropy_bonus=.01"], "learner.ranges = 2 with objective.entropy_bonus = 0.01"),
        (["learner.ranges=40"], "learner.ranges = 40 with rollout.prompts_per_step = 32: a step is learned in 32"),
        (["learner.ranges=8", "data.mode=think", "reward.functions={confidence: 1}"], "saves no time with reward conf"),
        (["learner.ranges=8", "objective.updates=2", "objective.preset=dapo", "objective.entropy_bonus=.01"], None),
        (["learner.ranges=1", "method=exact"], None),
        ([], None),
        (["rollout.top_k=2", "rollout.top_p=0.5", "rollout.temperature=0.3"], None),
        (["data.mode=think", "reward.functions={format: 1}", "rollout.max_completion_tokens=12"], None),
        (["reward.functions={accuracy: 1, repetition: 1}"], None),
        (["method=sft", "learner.beta=0", "rollout.top_k=1"], None),
    ],
    ids=str,
)
def test_settings_under_which_nothing_can_be_learned_are_doubted(said: list[str], told: str | None) -> None:
    printed: list[str] = []
    warn_of_nothing_to_learn(cli.parse(said).config, say=printed.append)
    assert len(printed) == (told is not None)
    assert told is None or (printed[0].startswith("warning: ") and told in printed[0])


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[2] / "deploy/recipes").rglob("*.yaml")), ids=str)
def test_no_recipe_holds_a_setting_without_effect(recipe: Path) -> None:
    printed: list[str] = []
    warn_of_nothing_to_learn(cli.parse(["--config", str(recipe)]).config, say=printed.append)
    assert not [line for line in printed if "without effect" in line]


def test_more_than_this_machine_serves_is_doubted(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []
    said = ["cluster.threads=900", "reward.workers=1000"]
    check_machine(cli.parse(said).config, say=printed.append)
    assert [line.partition(" = ")[0] for line in printed] == ["warning: cluster.threads", "warning: reward.workers"]
    check_machine(cli.parse([*said, "cluster.address=10.0.0.9:6379"]).config, say=pytest.fail)
    check_machine(cli.parse(["rollout.kv_cache_mb=64"]).config, say=pytest.fail)


def test_a_range_of_engines_reserves_the_least_and_doubts_what_never_fits(capsys: pytest.CaptureFixture[str]) -> None:
    share = "rollout.cpus_per_engine=0.1"
    few = cli.parse(["rollout.engines={min: 2, max: 3}", share]).config
    assert (few.rollout.min_engines, few.rollout.max_engines) == (2, 3)
    assert count_resources(few)["CPU"] == count_resources(cli.parse(["rollout.engines=2", share]).config)["CPU"]
    check_machine(few, say=pytest.fail)
    printed: list[str] = []
    check_machine(cli.parse(["rollout.engines={min: 1, max: 900}"]).config, say=printed.append)
    assert any("never reach max = 900 on this machine" in line for line in printed)
    assert main(["rollout.engines={min: 1, max: 2}", "rollout.cpus_per_engine=0.1", "--dry-run"]) == 0
    assert "for 1 engine(s), which may become 2" in capsys.readouterr().out


def test_the_doubts_are_said_at_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout.top_k=1", "--dry-run"]) == 0
    assert "warning: rollout.top_k = 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "megabytes"),
    [
        ([], (16 * 3 + 4) / 4),  # two newest and the best, of 16 bytes a parameter, and the export of 4
        (["checkpoint.keep=1", "checkpoint.export=false"], 16 * 2 / 4),
        (["checkpoint.every=0"], 1),
        (["checkpoint.every=0", "checkpoint.export=false"], 0),
        (["learner.zero_stage=0"], (12 * 3 + 4) / 4),
    ],
    ids=str,
)
def test_a_disk_that_is_too_full_draws_a_warning(
    said: list[str], megabytes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model of 1 MB; the free bytes are those at which the warning ends."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(bytes(1_000_000))
    config = cli.parse(said).config
    for more, warned in ((-1, True), (0, False)):
        free = SimpleNamespace(free=megabytes * 1e6 + more)
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: free)
        printed: list[str] = []
        warn_of_room(config, tmp_path / "model", tmp_path, say=printed.append)
        assert bool(printed) is warned


@pytest.mark.parametrize(
    ("signal", "rows", "named"),
    [
        ({"max_prompts": 3.0}, 40, "at most the 40 rows of the data instead of 48"),
        ({"max_prompts": 2.5}, 40, None),
        ({"curriculum": "learnability"}, 160, "signal.curriculum = learnability goes by earlier visits"),
        ({"max_group_size": 9}, 160, "signal.max_group_size = 9 goes by earlier visits"),
        ({"max_group_size": 9, "curriculum": "learnability", "skip_solved": 1}, 159, None),
        ({"skip_solved": 2}, 80, "signal.skip_solved = 2 acts after so many visits of a row, and this run has 2.0"),
        ({"skip_solved": 2}, 79, None),
        ({}, 16, None),
    ],
)
def test_signal_that_wants_more_rows_or_visits_is_warned_of(
    signal: dict[str, Any], rows: int, named: str | None
) -> None:
    """Ten steps of 16 prompts."""
    printed: list[str] = []
    config = Config.model_validate({"steps": 10, "signal": signal})
    warn_of_few_rows(config, rows=rows, say=printed.append)
    assert [str(named) in line for line in printed] == ([True] if named else [])
