"""Set up this checkout's `.venv`: CPU torch, the locked packages, the torchvision cure and Rollcall itself.

`python3 deploy/local/setup.py`, with any Python from 3.11 on and only its standard library. A stamp in `.venv` says
what was installed, so the next run does nothing. The stamp goes first and comes back last: an interrupted set-up
starts afresh.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PACKAGES = VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
UV = VENV / "bin" / "uv"
STAMP = VENV / "rollcall-set-up"
LOCK = ROOT / "requirements-cpu.lock"
CURE = ROOT / "deploy" / "local" / "torchvision_cure.py"
INSTALL = ("install", "-q", "--no-deps")
PIP = (PYTHON, "-m", "pip", *INSTALL, "--no-input", "--disable-pip-version-check")
UV_PIP = (UV, "pip", *INSTALL, "--python", PYTHON)  # ten times as fast as pip, and wanted only for that
UV_VERSION = "0.13.9"


class SetupError(Exception):
    """A step of the set-up failed; the message says which, why and what to do."""


def main() -> None:
    """Make `.venv` hold what the checkout asks for; raises SetupError naming the step that could not be done."""
    started = time.monotonic()
    check_interpreter()
    wanted = fingerprint(LOCK, CURE, Path(__file__), ROOT / "pyproject.toml")
    if is_current(PYTHON, STAMP, wanted):
        print("set-up: .venv is up to date, nothing to do", flush=True)
        return
    if not (STAMP.exists() and PYTHON.exists() and PACKAGES.exists()):  # never finished, moved, or of another Python
        run("a new .venv", sys.executable, "-m", "venv", "--clear", VENV)
    STAMP.unlink(missing_ok=True)
    install_uv()
    install_torch(*cpu_builds())
    install_locked()
    compile_torch()
    install_cure()
    run("rollcall itself, editable", *PIP, "--no-build-isolation", "-e", ROOT)
    STAMP.write_text(wanted)
    print(f"set-up: done in {time.monotonic() - started:.0f} s", flush=True)


def check_interpreter() -> None:
    """Raises SetupError for a Python that is too old, or comes without venv or pip."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this file also runs under older ones, to say so)
        raise SetupError(f"Python 3.11 to 3.14 is needed, this is {sys.version.split()[0]}; try PYTHON=python3.11")
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(f"this Python lacks {module}; install your system's python3-venv and python3-pip packages")


def fingerprint(*sources: Path) -> str:
    """SHA-256 over the interpreter's version and the contents of `sources`: equal where the same would be installed."""
    digest = hashlib.sha256(sys.version.encode())
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def is_current(python: Path, stamp: Path, wanted: str) -> bool:
    """Whether the last set-up finished, and installed exactly `wanted`."""
    return python.exists() and stamp.exists() and stamp.read_text() == wanted


def cpu_builds() -> tuple[str, str]:
    """The torch and torchvision requirements of pyproject's extra `cpu`."""
    import tomllib  # Python 3.11's: an older one should reach check_interpreter's message

    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cpu"]
    (torch,) = (requirement for requirement in extra if requirement.startswith("torch=="))
    (torchvision,) = (requirement for requirement in extra if requirement.startswith("torchvision=="))
    return torch, torchvision


def install_uv() -> None:
    """uv is a convenience: without it pip does all the work, slowly."""
    try:
        run("uv, a faster installer", *PIP, f"uv=={UV_VERSION}")
    except SetupError:
        UV.unlink(missing_ok=True)


def install_torch(torch: str, torchvision: str) -> None:
    """CPU torch from wherever pip is configured to look, else from PyTorch's CPU index, which uv knows by name."""
    try:
        run(f"{torch}, as pip is configured", *PIP, "--no-compile", torch)
    except SetupError:
        if not UV.exists():
            raise
        run(f"{torch}, PyTorch's index", *UV_PIP, "--torch-backend", "cpu", torch.removesuffix("+cpu"), torchvision)


def install_locked() -> None:
    """Everything else, each file checked against its hash; by pip where uv is missing or reaches no index."""
    locked = ("--require-hashes", "-r", LOCK)
    if not UV.exists():
        run("the locked packages, by pip", *PIP, *locked)
        return
    try:  # see `compile_torch`
        run("the locked packages, by uv", *UV_PIP, *locked, "--compile-bytecode")
    except SetupError:
        run("the locked packages, by pip: minutes", *PIP, *locked)


def compile_torch() -> None:
    """Bytecode now, once, instead of in every process of a machine that writes none: three seconds of each start.

    pip compiles torch too, on one core; uv leaves alone what it did not install.
    """
    later_pythons = "torch/testing/_internal"  # has files in the syntax of Python 3.12
    folders = [PACKAGES / name for name in ("torch", "torchgen")]
    with suppress(SetupError):  # a convenience
        run("torch's bytecode", PYTHON, "-m", "compileall", "-q", "-j", "0", "-x", later_pythons, *folders)


def install_cure() -> None:
    """Put the torchvision cure where every interpreter of `.venv` imports it at its start."""
    shutil.copyfile(CURE, PACKAGES / "rollcall_torchvision_cure.py")
    (PACKAGES / "rollcall_torchvision_cure.pth").write_text("import rollcall_torchvision_cure\n")


def run(what: str, *command: str | Path) -> None:
    """Run one step with a line of its own; raises SetupError with the end of its output when it fails."""
    print(f"set-up: {what}", end=" ", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"({time.monotonic() - started:.1f} s{', failed' if done.returncode else ''})", flush=True)
    if done.returncode:
        output = [line for line in done.stdout.splitlines() if "WARNING: Location" not in line]
        raise SetupError("\n".join([f"{what} failed: {' '.join(map(str, command))}", *output[-30:]]))


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"set-up: {error}")
