"""Every loss and advantage against values worked out by hand from the papers: one case of four completions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.objective import PRESETS, ObjectiveConfig
from learner.model.head import ScoringSpec, make_scoring_head
from learner.objective.advantages import COMPARISONS, StepRewards, punish_overlong
from learner.objective.kl import KL
from learner.objective.losses import LOSSES
from learner.objective.ratios import find_clipped
from learner.objective.records import LossInputs
from tests.helpers.losses import make_inputs

ROW, GROUP = [0, 0, 1, 2, 3, 3], [0, 0, 1, 1]
REWARD = [1.0, 0.0, 0.0, 0.5]
NEW = [-0.5, -1.0, -0.7, -0.45, -1.2, -0.3]
OLD = [-0.9, -0.9, -1.9, -0.3, -1.0, -0.4]
ENGINE = [-0.95, -0.85, -2.0, -0.25, -2.7, -0.4]
REFERENCE = [-0.8, -1.1, -0.6, -0.3, -1.2, -0.5]
LONGEST = 4

BY_GROUP = [0.70700680, -0.70700680, -0.70690684, 0.70690684]
ADVANTAGES = {
    "group": BY_GROUP,
    "none": [0.5, -0.5, -0.25, 0.25],
    "leave_one_out": [1.0, -1.0, -0.5, 0.5],
    "batch": [1.04424780, -1.04424780, -0.52212390, 0.52212390],
    "mean": [1.0, -1.0, -1.0, 1.0],
    "whitened": [1.11803396, -1.11803396, -1.11803396, 0.0],
    "whitened_baseline": [0.91287090, -1.52145150, -0.91287090, 0.30429030],
}


def test_every_comparison_has_a_reference_value() -> None:
    assert ADVANTAGES.keys() == COMPARISONS.keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", COMPARISONS)
def test_advantages(how: str, dtype: torch.dtype) -> None:
    rewards = torch.tensor(REWARD, dtype=dtype)
    step = StepRewards(rewards=rewards.split(2), lengths=torch.tensor([2, 1, 1, 2]).split(2))
    found = torch.cat(COMPARISONS[how](step))
    torch.testing.assert_close(found, torch.tensor(ADVANTAGES[how], dtype=dtype), rtol=0, atol=tolerance(dtype))


def tolerance(dtype: torch.dtype) -> float:
    return 1e-6 if dtype == torch.float64 else 1e-5


# name: settings, on policy, loss, its gradient with respect to the log-prob of each token
PPO: dict[str, Any] = {"loss": "grpo"}
WHOLE: list[tuple[str, dict[str, Any], float, list[float]]] = [
    ("clip", PPO, 0.3829271944, [0, -0.07996578, 0.58683631, 0.15211009, -0.07234580, -0.09765661]),
    ("dual clip", PPO | {"dual_clip": 3.0}, 0.3263459844, [0, -0.07996578, 0, 0.15211009, -0.07234580, -0.09765661]),
    ("dr_grpo", PRESETS["dr_grpo"], 0.0213650830, [0, -0.02827617, 0.10375365, 0.01344856, -0.01279267, -0.01726830]),
    ("dapo", PRESETS["dapo"], 0.0085119053, [0, -0.10662103, 0.39122420, 0.10140673, -0.09646106, -0.13020881]),
    ("lite_ppo", PRESETS["lite_ppo"], 0.1189890184, [0, -0.15747908, 0.57783747, 0.07489937, -0.07124648, -0.09617269]),
    ("gspo", PRESETS["gspo"], 0.4185799522, [0, 0, 0.58683631, 0, -0.08405382, -0.08405382]),
    ("gspo_token", PRESETS["gspo_token"], 0.4185799522, [0, 0, 0.58683631, 0, -0.08405382, -0.08405382]),
    (
        "gspo wide",
        {"loss": "gspo", "clip_low": 0.3, "clip_high": 0.3},
        0.3654825726,
        [-0.10267809, -0.10267809, 0.58683631, 0.15211009, -0.08405382, -0.08405382],
    ),
    (
        "luspo wide",
        {"loss": "gspo", "aggregation": "sequence_sum", "clip_low": 0.3, "clip_high": 0.3},
        -0.0079812497,
        [-0.20535618, -0.20535618, 0.58683631, 0.15211009, -0.16810765, -0.16810765],
    ),
    (
        "gmpo",
        PRESETS["gmpo"],
        0.3654825726,
        [-0.10267809, -0.10267809, 0.58683631, 0.15211009, -0.08405382, -0.08405382],
    ),
    (
        "cispo",
        PRESETS["cispo"],
        0.0298411650,
        [-0.17578837, -0.10662103, 0.39122420, 0.10140673, -0.09646106, -0.13020881],
    ),
    (
        "cispo both bounds",
        {"loss": "cispo", "aggregation": "token"},
        0.1875236530,
        [-0.14140136, -0.10662103, 0.14140136, 0.10140673, -0.09646106, -0.13020881],
    ),
    (
        "sapo",
        PRESETS["sapo"],
        0.1967389304,
        [-0.12417920, -0.07978501, 0.17366976, 0.15129953, -0.07175474, -0.09738706],
    ),
    ("rloo", PRESETS["rloo"], 0.5245130505, [0, 0, 0.83002923, 0.10758850, -0.11310468, -0.11310468]),
    ("reinforce_pp", PRESETS["reinforce_pp"], 0.3868374177, [0, -0.16860649, 0.61866725, 0.16038346, 0, 0]),
    (
        "reinforce_pp_baseline",
        PRESETS["reinforce_pp_baseline"],
        0.5550404500,
        [0, -0.13766663, 0.84189948, 0.13095254, -0.04152197, -0.05604880],
    ),
    (
        "TIS of tokens",
        {"correction": "truncate", "correction_high": 2.0},
        0.3633436398,
        [0, -0.07606580, 0.64855442, 0.14469159, -0.14469159, -0.09765661],
    ),
    (
        "TIS of sequences",
        {"correction": "truncate", "correction_level": "sequence", "correction_high": 2.0},
        0.2672244051,
        [0, -0.07996578, 0.64855442, 0.14469159, -0.14469159, -0.19531322],
    ),
    (
        "IcePop",
        {"correction": "mask", "correction_low": 0.5, "correction_high": 5.0},
        0.5080352317,
        [0, -0.07606580, 0.64855442, 0.14469159, 0, -0.09765661],
    ),
    (
        "MIS of sequences",
        {"correction": "mask", "correction_level": "sequence", "correction_low": 0.0, "correction_high": 3.0},
        0.6072292167,
        [0, -0.07996578, 0.64855442, 0.14469159, 0, 0],
    ),
    ("sequence mask", {"sequence_mask": 0.1}, 0.2308171059, [0, -0.07996578, 0.58683631, 0, -0.07234580, -0.09765661]),
]


def case(dtype: torch.dtype, settings: dict[str, Any], *, on_policy: bool = False, beta: float = 0.0) -> LossInputs:
    """The four completions under some settings of the objective."""

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    objective = ObjectiveConfig(**settings)
    return make_inputs(
        floats(NEW).requires_grad_(),
        old_logp=None if on_policy else floats(OLD),
        ref_logp=floats(REFERENCE) if beta else None,
        engine_logp=floats(ENGINE),
        row=ROW,
        group=GROUP,
        reward=floats(REWARD),
        advantage=floats(ADVANTAGES[objective.advantage]),
        longest=LONGEST,
        beta=beta,
        objective=objective,
    )


def check(inputs: LossInputs, value: float, gradient: list[float]) -> None:
    """Compare loss and gradient with the reference."""
    loss = LOSSES[inputs.objective.loss](inputs).loss
    loss.backward()
    atol = tolerance(loss.dtype)
    torch.testing.assert_close(loss.item(), value, rtol=0, atol=atol)
    torch.testing.assert_close(inputs.logp.grad, torch.tensor(gradient, dtype=loss.dtype), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("settings", "value", "gradient"), [row[1:] for row in WHOLE], ids=[row[0] for row in WHOLE])
def test_losses(settings: dict[str, Any], value: float, gradient: list[float], dtype: torch.dtype) -> None:
    check(case(dtype, settings), value, gradient)


def test_grpo_in_the_first_update() -> None:
    gradient = [-0.08837585, -0.08837585, 0.17675170, 0.17672671, -0.08836335, -0.08836335]
    check(case(torch.float64, {}, on_policy=True), 0.0, gradient)


def test_clipped_grpo_with_kl() -> None:
    gradient = [0.00129591, -0.07948996, 0.58578460, 0.15049175, -0.07234580, -0.09675026]
    check(case(torch.float64, {}, beta=0.04), 0.3834191779, gradient)


KLS = {
    "k1": (0.0125, [0.125, 0.125, 0.25, 0.25, 0.125, 0.125]),
    "k2": (0.0128125, [0.0375, 0.0125, -0.025, -0.0375, 0, 0.025]),
    "k3": (0.0122995892, [0.03239772, 0.01189532, -0.02629273, -0.04045856, 0, 0.02265866]),
    "k3_plus": (0.0122995892, [0.0375, 0.0125, -0.025, -0.0375, 0, 0.025]),
}


def test_every_kl_has_a_reference_value() -> None:
    assert KLS.keys() == KL.keys()


@pytest.mark.parametrize("kl", KL)
def test_kl(kl: str) -> None:
    """The KL is the difference between the losses with and without it."""
    outputs, plain = case(torch.float64, {"kl": kl}, beta=1.0), case(torch.float64, {})
    with_kl, without = LOSSES["grpo"](outputs), LOSSES["grpo"](plain)
    (with_kl.loss - without.loss).backward()
    assert outputs.logp.grad is not None
    assert plain.logp.grad is not None
    value, gradient = KLS[kl]
    assert with_kl.kl.item() == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(
        outputs.logp.grad + plain.logp.grad, torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_corrected_kl() -> None:
    outputs, plain = case(torch.float64, {"kl_corrected": True}, beta=1.0), case(torch.float64, {})
    with_kl, without = LOSSES["grpo"](outputs), LOSSES["grpo"](plain)
    (with_kl.loss - without.loss).backward()
    assert outputs.logp.grad is not None
    assert plain.logp.grad is not None
    assert with_kl.kl.item() == pytest.approx(0.0175848937, abs=1e-9)
    wanted = torch.tensor([0.05594343, 0.01131047, -0.08300292, -0.03227655, 0, 0.02762927], dtype=torch.float64)
    torch.testing.assert_close(outputs.logp.grad + plain.logp.grad, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tokens", "wanted"), [(5, 0), (6, 0), (7, -0.25), (10, -1), (12, -1)])
def test_the_punishment_of_long_completions(tokens: int, wanted: float) -> None:
    assert punish_overlong(torch.tensor([tokens]), longest=10, buffer=4).item() == wanted


def test_the_entropy_bonus() -> None:
    """Of logits (1, 0, -1): its value, and its gradient through the head that gives log-probs and entropies."""
    head = torch.nn.Linear(3, 3, bias=False)
    torch.nn.init.eye_(head.weight)

    class Model:
        def get_output_embeddings(self) -> torch.nn.Linear:
            return head

    scoring = make_scoring_head(Model())
    states = torch.tensor([[[1.0, 0.0, -1.0]]], requires_grad=True)
    with scoring.scoring(ScoringSpec(), torch.tensor([0])) as seen:
        scoring(states)
    entropy = seen[0]
    assert entropy is not None
    assert entropy.item() == pytest.approx(0.8323955818, abs=1e-6)
    torch.autograd.backward(entropy.sum())
    wanted = torch.tensor([[[-0.2825874511, 0.1407703575, 0.1418170936]]])
    assert states.grad is not None
    torch.testing.assert_close(states.grad, wanted, rtol=0, atol=1e-6)


# By hand from the log-ratios new - old of the rows: (.4, -.1), (1.2), (-.15), (-.2, .1). Advantages +, -, -, +.
CLIPPED: list[tuple[dict[str, Any], list[int]]] = [
    ({"loss": "grpo"}, [1, 0, 1, 0, 0, 0]),  # ratios 1.49, .905, 3.32, .861, .819, 1.105
    ({"loss": "grpo", "clip_low": 0.15, "clip_high": 0.1}, [1, 0, 1, 0, 1, 1]),
    ({"loss": "gspo", "clip_low": 0.04, "clip_high": 0.2}, [0, 0, 1, 1, 1, 1]),  # means .15, 1.2, -.15, -.05
    ({"loss": "gspo_token", "clip_low": 0.14, "clip_high": 0.1}, [1, 1, 1, 0, 0, 0]),
    ({"loss": "rloo"}, [1, 1, 1, 0, 0, 0]),  # sums .3, 1.2, -.15, -.1
    ({"loss": "gmpo", "clip_low": 0.1, "clip_high": 0.3}, [1, 0, 0, 1, 0, 0]),
    ({"loss": "cispo", "clip_low": 0.0, "clip_high": 2.0}, [0, 0, 1, 0, 0, 0]),
    ({"loss": "cispo", "clip_low": 0.15, "clip_high": 2.0}, [0, 0, 1, 0, 1, 0]),
    ({"loss": "sapo"}, [0, 0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("own", "wanted"), CLIPPED)
def test_the_clipped_share_is_of_what_each_loss_clips(own: dict[str, Any], wanted: list[int]) -> None:
    assert find_clipped(case(torch.float64, own)).int().tolist() == wanted
