"""Everything that is DeepSpeed's: process group, engine, reference, gradient norm, checkpoint files.

Only a rank's own process imports this file.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, cast

import deepspeed
import psutil
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor
from torch._C._distributed_c10d import Store

from common.config.schema import Config
from common.errors import CheckpointError, LearnerError, RollcallError
from common.models.own_code import explain_unreadable
from common.storage.output import Output
from learner.trainer.zero_config import partition_config, training_config

SHARED_FILE = "/mp_rank_00_model_states.pt"  # of rank 0, read by all ranks below ZeRO-3
TAG = "deepspeed"  # folder of the engine's files inside a checkpoint
_ROOT = "checkpoint"  # what DeepSpeed is told to write into: CheckpointFiles puts it elsewhere
# What DeepSpeed's files hold beside tensors and plain values, at any stage, dtype and offload: numbers in a class.
SAFE_CLASSES = (LossScaler, ZeroStageEnum, fragment_address)


def join_ranks(config: Config, *, rank: int, store: Store, address: str) -> torch.device:
    """Join the process group of all ranks and return the device of this one. Ray shows a rank one GPU only.

    Args:
        address: of this host, at which the other ranks reach it.
    """
    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed uses old names
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(config.learner.ranks),
    }  # DeepSpeed reads them
    cuda = config.cluster.device == "cuda"
    if not cuda:  # DeepSpeed would compile a C++ extension for minutes, and fail where there is no compiler
        vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
        # gloo would take the interface of the host's name, which Debian maps to the loopback address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", find_interface(address))
    backend = "nccl" if cuda else "gloo"
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=config.learner.ranks,
        timeout=timedelta(seconds=config.learner.step_timeout_s),
    )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return torch.device("cuda", 0) if cuda else torch.device("cpu")


def find_interface(address: str) -> str:
    """Return the name of the network interface that has an address. Raises LearnerError where none has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    raise LearnerError(
        "Ray's address of this host is on none of its network interfaces",
        got=address,
        remedy="start Ray on this host with --node-ip-address, one that `ip address` shows",
    )


def build_training_engine(model: Any, config: Config) -> Any:
    """Return the engine that trains every parameter of `model` that requires a gradient."""
    learner = config.learner
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=wanted, config=training_config(model, config))
    engine.checkpoint_engine = CheckpointFiles(engine.checkpoint_engine)
    if learner.ranks == 1 and not learner.zero_stage:  # the mean of one: all gradients would be copied to and fro
        engine.enable_backward_allreduce = False
    engine._copy_recovery_script = lambda path: None  # noqa: SLF001  # a write that would raise past the others
    engine.module_state_dict = lambda **_: _select_trained_state(model)
    return engine


def build_reference(model: Any, config: Config, device: torch.device) -> Any:
    """Return the frozen reference: partitioned like the policy under ZeRO-3, a plain model otherwise."""
    model.requires_grad_(False).eval()
    if config.learner.zero_stage < 3:
        return model.to(device)
    engine, *_ = deepspeed.initialize(model=model, config=partition_config(model, config, stage=3))
    return engine


def refresh_whole(parameters: Sequence[Tensor]) -> None:
    """Make parameters that ZeRO-3 keeps whole on every rank what their changed partitions are. A collective."""
    whole = [one for one in parameters if getattr(one, "ds_status", None) is ZeroParamStatus.AVAILABLE]
    if not whole:
        return
    shares = [cast("Any", one).ds_tensor.to(one.device) for one in whole]
    sent = torch.cat(shares)
    ranks = torch.distributed.get_world_size()
    received = sent.new_empty(ranks * len(sent))
    torch.distributed.all_gather_into_tensor(received, sent)

    # Of each parameter the shares of all ranks in order; the last may end with padding.
    parts = received.view(ranks, -1).split([len(share) for share in shares], dim=1)
    for parameter, part in zip(whole, parts, strict=True):
        parameter.data.copy_(part.reshape(-1)[: parameter.numel()].view(parameter.shape))


def build_scoring_engine(model: Any, config: Config) -> Any:
    """Return an engine that trains nothing: partitioned under ZeRO-3, whole on every rank otherwise."""
    model.requires_grad_(False).eval()
    stage = 3 if config.learner.zero_stage == 3 else 0
    engine, *_ = deepspeed.initialize(model=model, config=partition_config(model, config, stage=stage))
    return engine


def make_gatherer(config: Config) -> Callable[[list[Tensor]], AbstractContextManager[Any]]:
    """Return a function that makes the context in which given parameters are whole on every rank."""

    def gathered(tensors: list[Tensor]) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            tensors, enabled=config.learner.zero_stage == 3
        )
        return context

    return gathered


def optimizer_step(engine: Any, *, lr: float, clip: float, correction: float = 1.0) -> float:
    """Multiply the gradient with `correction`, clip it to norm `clip` and step at rate `lr`.

    Returns the norm of the whole gradient before clipping, NaN when there was no valid step: weights, optimizer state
    and the next gradient are then as if nothing had been computed.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    if engine.zero_optimization_stage() == 0:
        norm = _clip(engine.module, clip, correction)
        if not math.isfinite(norm):
            engine.zero_grad()
            return math.nan
        engine.step()
    else:
        engine.optimizer.loss_scale = 1 / correction  # ZeRO divides the gradient by it, before it clips
        engine.step()
        engine.optimizer.loss_scale = 1.0
        norm = float(engine.get_global_grad_norm())
    return norm if engine.was_step_applied() and norm >= 0 else math.nan  # DeepSpeed's word for infinite is -1


def save(engine: Any, output: Output, *, besides: Mapping[str, Any]) -> OSError | None:
    """Write this rank's share of what trains, and the files `besides` it.

    A collective: the error of a failed write is returned, not raised past the other ranks.
    """
    writer: CheckpointFiles = engine.checkpoint_engine
    writer.output, writer.error = output, None
    _save(engine)
    for name, state in besides.items():
        writer.save(state, f"{_ROOT}/{name}")
    return writer.error


def capture(engine: Any) -> dict[str, Any]:
    """Return this rank's share of what trains by name of the file `save` would write, uncopied. A collective."""
    writer: CheckpointFiles = engine.checkpoint_engine
    writer.captured = {}
    try:
        _save(engine)
        return writer.captured
    finally:
        writer.captured = None


def _save(engine: Any) -> None:
    engine.save_checkpoint(_ROOT, tag=TAG, save_latest=False, exclude_frozen_parameters=True)


def load_captured(engine: Any, files: Mapping[str, Any]) -> None:
    """Load what `capture` returned, on this rank and, below ZeRO-3, on the first. A collective."""
    reader: CheckpointFiles = engine.checkpoint_engine
    with TemporaryDirectory(prefix="rollcall-") as folder:
        for name in files:  # DeepSpeed looks for them before it asks for their contents
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
            reader.given[path] = files[name]
        try:
            load(engine, Path(folder))
        finally:
            reader.given.clear()


def checkpoint_bytes(engine: Any) -> int:
    """Estimate the bytes that all ranks together write at `save`.

    A trained float32 parameter takes 16 under ZeRO-1 and 2: itself, its master and two moments of Adam. Stage 0 has no
    masters, and stage 3 writes the master in place of the parameter.
    """
    stage: int = engine.zero_optimization_stage()
    trained: list[Tensor] = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    each = (0 if stage == 3 else trained[0].itemsize) + (4 if stage else 0) + 8
    return each * sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)


def load(engine: Any, folder: Path) -> None:
    """Load trained weights, optimizer state and step counter, saved by as many ranks at the same stage."""
    path, _ = engine.load_checkpoint(
        str(folder), tag=TAG, load_lr_scheduler_states=False, custom_load_fn=_load_trained_state
    )
    if path is None:
        raise CheckpointError(
            "DeepSpeed finds no checkpoint", got=folder, remedy="resume from a folder that holds " + TAG
        )


def read_file(path: Path | str, *, map_location: Any = None) -> Any:
    """Read one file of a checkpoint: tensors and plain values. Raises CheckpointError for any other; no code runs."""
    with refuse_strangers(path), torch.serialization.safe_globals(list(SAFE_CLASSES)):
        return torch.load(path, map_location=map_location, weights_only=True)


@contextmanager
def refuse_strangers(path: Path | str) -> Iterator[None]:
    """Raise CheckpointError naming `path` for whatever goes wrong inside: its files may be anybody's."""
    try:
        yield
    except RollcallError:
        raise
    except Exception as error:  # torch and DeepSpeed fail on foreign files in any way
        raise CheckpointError(
            f"{path} of the checkpoint cannot be used",
            got=explain_unreadable(error),
            remedy="resume from a checkpoint that a run of yours wrote; code in one is never run",
        ) from error


def _select_trained_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters a checkpoint holds: those that train. The others are in the base model."""
    return {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items() if tensor.requires_grad}


def _load_trained_state(*, src: Mapping[str, Tensor], dst: torch.nn.Module) -> None:
    if src.keys() != (wanted := _select_trained_state(dst).keys()):
        raise CheckpointError(
            "the checkpoint holds other parameters than this run trains",
            got=f"{len(src)} of them, {len(wanted)} here; one they do not share: {min(src.keys() ^ wanted)}",
            remedy="resume with the configuration it was written under",
        )
    dst.load_state_dict(src, strict=False)


class CheckpointFiles(TorchCheckpointEngine):  # type: ignore[misc]  # DeepSpeed has no types
    """Writes DeepSpeed's files to `output`, whatever folder DeepSpeed takes them to lie in, and reads them back.

    The first failed write is kept and all others are tried, so that no other rank waits in a barrier for ever. No file
    that is read runs code.
    """

    def __init__(self, engine: Any) -> None:
        self.name = engine.name
        self.output: Output | None = None
        self.error: OSError | None = None
        self.captured: dict[str, Any] | None = None  # the files by name, where they stay in memory
        self.given: dict[Path, Any] = {}  # contents of files that are read from memory

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: the output makes the folders of its files."""

    def save(self, state_dict: Any, path: str) -> None:
        name = str(Path(path).relative_to(_ROOT))
        if self.captured is not None:
            self.captured[name] = state_dict
            return
        assert self.output is not None, "only `save` of this module writes"
        try:
            with self.output.open(name) as file:
                torch.save(state_dict, cast("IO[bytes]", file))
        except OSError as error:
            self._remember(error, name)
        except RuntimeError as error:  # torch's zip writer turns what `file` raised into its own
            self._remember(OSError(errno.EIO, str(error).splitlines()[0]), name)

    def load(self, path: str, map_location: Any = None) -> Any:
        return self.given[Path(path)] if Path(path) in self.given else read_file(path, map_location=map_location)

    def _remember(self, error: OSError, name: str) -> None:
        named = OSError(error.errno, error.strerror, name) if error.errno else OSError(f"{name}: {error}")
        self.error = self.error or named


def _clip(module: torch.nn.Module, limit: float, correction: float) -> float:
    """Correct and clip averaged gradients that every rank holds whole, and return their norm between the two.

    DeepSpeed does neither without ZeRO.
    """
    if correction != 1:
        torch._foreach_mul_([p.grad for p in module.parameters() if p.grad is not None], correction)
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    torch.nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    return float(norm)
