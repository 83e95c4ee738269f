"""Set up this checkout's `.venv`: torch, vLLM, all else that is locked, and Rollcall itself.

`python3 deploy/local/setup.py [cpu|gpu] [--without-driver]`, with Python's standard library alone. Without a word it
keeps the device `.venv` was made for, and a first time takes the GPU where there is one. Each downloaded file is
checked against a hash of this checkout, whatever index or folder it came from.

A stamp in `.venv` says what was installed, so the next run does nothing. Anything else makes `.venv` afresh: a build
for another device would stay where its version is the same.
"""

import ctypes
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

if not (3, 11) <= sys.version_info < (3, 15):  # before anything that an older Python cannot read
    sys.exit(f"set-up: Python 3.11 to 3.14 is needed, this is {sys.version.split()[0]}; try make PYTHON=python3.11")

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PACKAGES = VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
UV = VENV / "bin" / "uv"
STAMP = VENV / "rollcall-set-up"
LOCKS = {"cpu": ROOT / "requirements-cpu.lock", "gpu": ROOT / "requirements-gpu.lock"}
HERE = ROOT / "deploy" / "local"
UV_LOCK, TORCH_LOCK, CURE = HERE / "uv-installer.lock", HERE / "torch-cpu.lock", HERE / "torchvision_cure.py"
BUILT_HERE = ("deepspeed", "docopt")  # published as sources alone; setuptools is all that they are built with
CUDA = 13  # what the locked torch is built for
INSTALL = ("install", "-q", "--no-deps")
PIP = (PYTHON, "-m", "pip", *INSTALL, "--no-input", "--disable-pip-version-check")
UV_PIP = (UV, "pip", *INSTALL, "--python", PYTHON)  # ten times as fast as pip, and wanted only for that


class SetupError(Exception):
    """A step of the set-up failed; the message says which, why and what to do."""


class HashError(SetupError):
    """A file is not the one that was locked. No other way of installing is tried."""


def main(words: list[str]) -> None:
    """Make `.venv` hold what the checkout asks for; raises SetupError naming the step that could not be done."""
    started = time.monotonic()
    check_interpreter()
    device = choose_device(words)
    check_libraries(device)
    sources = (LOCKS[device], UV_LOCK, TORCH_LOCK, CURE, Path(__file__), ROOT / "pyproject.toml")
    wanted = f"{device} {fingerprint(*sources)}"
    if is_current(PYTHON, STAMP, wanted):
        print(f"set-up: .venv is up to date for {device}, nothing to do", flush=True)
        return
    STAMP.unlink(missing_ok=True)
    run("a new .venv", sys.executable, "-m", "venv", "--clear", VENV)
    install_uv()
    build_sources(LOCKS[device])
    if device == "cpu":
        install_torch()
    install_wheels(LOCKS[device])
    if device == "cpu":
        install_cure()
    compile_torch()
    run("rollcall itself, editable", *PIP, "--no-build-isolation", "-e", ROOT)
    STAMP.write_text(wanted)
    print(f"set-up: done for {device} in {time.monotonic() - started:.0f} s", flush=True)


def check_interpreter() -> None:
    """Raises SetupError for a Python that comes without venv or pip."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(f"this Python lacks {module}; install your system's python3-venv and python3-pip packages")


def check_libraries(device: str) -> None:
    """Raises SetupError where a library of the system is missing, which no package brings: vLLM would say so late."""
    if device == "gpu":
        return
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise SetupError(
            f"vLLM for CPUs cannot load {error}; install your system's libnuma1 or numactl-libs"
        ) from error


def choose_device(words: list[str]) -> str:
    """Return "cpu" or "gpu": the one asked for, else that of `.venv`, else what this machine has.

    Raises SetupError for another word, and for "gpu" where no GPU can run it, unless `--without-driver` is given.
    """
    asked = [word for word in words if word != "--without-driver"]
    if len(asked) > 1 or not set(asked) <= LOCKS.keys():
        raise SetupError(f"DEVICE = {' '.join(asked)} is neither cpu nor gpu")
    if asked == ["gpu"] and "--without-driver" not in words:
        obstacle = find_obstacle()
        if obstacle:
            raise SetupError(
                f"DEVICE = gpu, but {obstacle}; DEVICE=cpu installs the CPU packages. For an image, or a node that "
                f"only submits jobs: {sys.executable} deploy/local/setup.py gpu --without-driver"
            )
    if asked:
        return asked[0]
    if STAMP.exists():
        held = STAMP.read_text().partition(" ")[0]
        if held in LOCKS:
            return held
    obstacle = find_obstacle()
    device = "cpu" if obstacle else "gpu"
    print(f"set-up: for {device}, because {obstacle or 'there is a GPU'}; DEVICE=cpu or DEVICE=gpu decides otherwise")
    return device


def find_obstacle() -> str | None:
    """Say why the GPU packages cannot run here: no NVIDIA driver, one too old, no GPU. None where they can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))  # 12040 is CUDA 12.4
    if version.value // 1000 < CUDA:
        found = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"the NVIDIA driver is for CUDA {found}, and {CUDA} is needed"
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver shows no GPU"
    return None


def fingerprint(*sources: Path) -> str:
    """SHA-256 over the interpreter's version and the contents of `sources`: equal where the same would be installed."""
    digest = hashlib.sha256(sys.version.encode())
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def is_current(python: Path, stamp: Path, wanted: str) -> bool:
    """Whether the last set-up finished, and installed exactly `wanted`."""
    return python.exists() and PACKAGES.exists() and stamp.exists() and stamp.read_text() == wanted


def install_uv() -> None:
    """uv is a convenience: without it pip does all the work, slowly."""
    try:
        run("uv, a faster installer", *PIP, "--require-hashes", "--only-binary", ":all:", "-r", UV_LOCK)
    except HashError:
        raise
    except SetupError:
        UV.unlink(missing_ok=True)


def install_torch() -> None:
    """CPU torch from wherever pip is configured to look, else from PyTorch's CPU index, which uv knows by name."""
    locked = ("--require-hashes", "--only-binary", ":all:", "-r", TORCH_LOCK)
    try:
        run("torch for CPUs, as pip is configured", *PIP, *locked, "--no-compile")
    except HashError:
        raise
    except SetupError:
        if not UV.exists():
            raise
        run("torch for CPUs, from PyTorch's index", *UV_PIP, *locked, "--torch-backend", "cpu")


def build_sources(lock: Path) -> None:
    """Build what is published as sources alone, before the rest: with the locked setuptools and no other package.

    Nothing else is downloaded for it, and a build that looks for torch finds none, whatever the device. What an earlier
    build left in a cache is not used.
    """
    install("setuptools", "--only-binary", ":all:", "-r", write_part(lock, "setuptools"))
    install(" and ".join(BUILT_HERE), "--no-build-isolation", "--no-cache-dir", "-r", write_part(lock, *BUILT_HERE))


def install_wheels(lock: Path) -> None:
    """Install everything else of `lock`."""
    rest = write_part(lock, *(name for name in read_lock(lock) if name not in BUILT_HERE))
    install("the locked packages", "--only-binary", ":all:", "-r", rest)


def install(what: str, *options: str | Path) -> None:
    """Install what `options` name, each file checked against its hash: by pip where uv is missing or fails."""
    if UV.exists():
        try:  # see `compile_torch`
            run(f"{what}, by uv", *UV_PIP, "--require-hashes", "--compile-bytecode", *options)
        except HashError:
            raise
        except SetupError:
            pass
        else:
            return
    run(f"{what}, by pip", *PIP, "--require-hashes", "--use-pep517", *options)


def read_lock(lock: Path) -> dict[str, list[str]]:
    """Return the entries of a lock by package: a package may have one for each range of Pythons."""
    entries: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", lock.read_text().strip()):
        entries.setdefault(entry.partition("==")[0], []).append(entry)
    return entries


def write_part(lock: Path, *packages: str) -> Path:
    """Write the entries of these packages into a lock of their own, and return its path."""
    entries = read_lock(lock)
    part = VENV / "part.lock"
    part.write_text("".join(f"{entry}\n" for package in packages for entry in entries[package]))
    return part


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
        raise explain(what, command, done.stdout)


# What pip and uv print, the error to make of it, and what to do.
KNOWN = (
    (
        r"DO NOT MATCH THE HASHES|[Hh]ash mismatch",
        HashError,
        "a file is not the one that was locked, and was not used. Look at where pip and uv fetch from",
    ),
    (r"No space left on device", SetupError, "the disk is full. The CPU packages take 4 GB, those for GPUs 12 GB"),
    (
        r"name resolution|[Nn]ame or service not known|dns error|NewConnectionError|error sending request|timed out",
        SetupError,
        "there is no network. Check it, or the index and proxy that pip and uv are configured for",
    ),
    (
        r"No matching distribution|No solution found",
        SetupError,
        "no index or folder that is configured offers this file for this Python and processor",
    ),
)


def explain(what: str, command: tuple[str | Path, ...], output: str) -> SetupError:
    """Make the error of a step: a sentence and what was printed of a cause that is known, else the end of all of it."""
    lines = [line for line in output.splitlines() if line.strip() and "WARNING: Location" not in line]
    for pattern, error, remedy in KNOWN:
        matches = [number for number, line in enumerate(lines) if re.search(pattern, line)]
        if matches:
            return error("\n".join([f"{what} failed: {remedy}", *lines[matches[-1] : matches[-1] + 4]]))
    return SetupError("\n".join([f"{what} failed: {' '.join(map(str, command))}", *lines[-30:]]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SetupError as error:
        sys.exit(f"set-up: {error}")
