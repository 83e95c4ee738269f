"""A reference that follows the policy, on real DeepSpeed ranks at every ZeRO stage: KL, averages, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.schema import Config
from common.errors import CheckpointError
from learner.trainer.group import LearnerGroup
from tests.helpers import oracle, tiny
from tests.learner.trainer.test_group import BROKEN, SPEC, Weights, assert_equal, batch, opened, settings, unpack

pytestmark = pytest.mark.engine

DECAY = 0.75


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


def configure(model: Path, ranks: int, stage: int, dtype: str = "float32", **learner: Any) -> Config:
    raw = settings(model, ranks=ranks, stage=stage, dtype=dtype).model_dump()
    raw["learner"] |= learner
    raw["objective"] |= {"correction": "none"}  # the engines of these groups are made up
    return Config.model_validate(raw)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_the_kl_is_0_right_after_a_reset_and_only_there(
    ray_session: None, model_path: Path, ranks: int, stage: int
) -> None:
    """A skipped step makes no version, and so no reset."""
    broken = batch(1)
    broken[0] = BROKEN["an infinite reward"](broken[0])
    with opened(configure(model_path, ranks, stage, reference_reset_every=2)) as group:
        found = [group.step(batch(0), at=0).kl]
        assert group.step(broken, at=1).updates == 0
        found += [group.step(batch(at), at=at).kl for at in (1, 2, 3, 4, 5)]
    assert [kl == 0 for kl in found] == [True, False, True, False, True, False]
    assert min(found) >= 0


def take_steps(group: LearnerGroup, *steps: int) -> tuple[list[Any], list[Weights]]:
    """The results of some steps, and the weights after each."""
    results, weights = [], []
    for at in steps:
        results.append(group.step(batch(at), at=at))
        weights.append(unpack(group.publish(at + 1)))
    return results, weights


def average(start: Weights, later: list[Weights]) -> Weights:
    """The moving average in float64."""
    kept = {name: tensor.double() for name, tensor in start.items()}
    for weights in later:
        kept = {name: DECAY * kept[name] + (1 - DECAY) * tensor.double() for name, tensor in weights.items()}
    return kept


def read_reference(folder: Path) -> list[Tensor]:
    """What a checkpoint holds of the reference: whole tensors, or one after the other the partitions of the ranks."""
    files = sorted(folder.glob("reference-*.pt"))
    parts = [torch.load(file, weights_only=True)["kept"] for file in files]
    return [torch.cat([part.reshape(-1) for part in own]) for own in zip(*parts, strict=True)]


def compute_kl(policy_weights: Weights, reference_weights: Weights, at: int) -> float:
    """The KL that a step measures: of each token, then the mean over the tokens of each completion, then over those."""
    policy, reference = tiny.model(), tiny.model()
    policy.load_state_dict(policy_weights)
    reference.load_state_dict({name: tensor.float() for name, tensor in reference_weights.items()})
    rows = []
    for scored in batch(at):
        for index in range(len(scored.rewards)):
            lp, ref, _ = oracle.row_logprobs(policy, reference, scored, index, SPEC)
            rows.append(((ref - lp).exp() - (ref - lp) - 1).mean().item())
    return sum(rows) / len(rows)


@pytest.mark.parametrize(
    ("ranks", "stage", "dtype"),
    [(1, 0, "float32"), (2, 1, "bfloat16"), (2, 3, "float32"), (2, 3, "bfloat16")],
)
def test_a_moving_average_is_the_oracles_and_survives_a_kill(
    ray_session: None, model_path: Path, tmp_path: Path, ranks: int, stage: int, dtype: str
) -> None:
    config = configure(model_path, ranks, stage, dtype, reference_ema=DECAY)
    checkpoint = tmp_path / "checkpoint"
    with opened(config) as group:
        start = unpack(group.publish(0))
        results, weights = take_steps(group, 0, 1, 2)
        reports = group.save(checkpoint)
        later, ends = take_steps(group, 3, 4)
        estimated = group.checkpoint_bytes()

    # Values, of the checkpoint and of the KL that was measured against them.
    wanted = average(start, weights)
    names = [name for name, _ in tiny.model().named_parameters()]
    for name, found in zip(names, read_reference(checkpoint), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[: wanted[name].numel()].double(), wanted[name].reshape(-1), rtol=0, atol=1e-6)
    assert (results[0].kl, results[1].kl > 0) == (0, True)
    if dtype == "float32":
        assert later[0].kl == pytest.approx(compute_kl(weights[-1], wanted, at=3), rel=1e-3)

    # Bytes, and who reported them.
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert 0 <= size - estimated < 170_000
    assert sum(file.bytes for report in reports for file in report.files) == size

    with opened(config) as group:
        group.load(checkpoint)
        again, resumed = take_steps(group, 3, 4)
    assert again == later
    assert_equal(resumed[-1], ends[-1])


def test_a_reset_reference_survives_a_kill_and_a_damaged_one_is_refused(
    ray_session: None, model_path: Path, tmp_path: Path
) -> None:
    config, checkpoint = configure(model_path, 2, 3, reference_reset_every=2), tmp_path / "checkpoint"
    with opened(config) as group:
        take_steps(group, 0, 1, 2)
        group.save(checkpoint)
        later, ends = take_steps(group, 3)
    with opened(config) as group:
        group.load(checkpoint)
        again, resumed = take_steps(group, 3)
        assert again == later
        assert_equal(resumed[-1], ends[-1])
        torch.save({"kept": [torch.zeros(1)]}, checkpoint / "reference-1.pt")
        with pytest.raises(CheckpointError, match="the reference of the checkpoint is of another kind"):
            group.load(checkpoint)
