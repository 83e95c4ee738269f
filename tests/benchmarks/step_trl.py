"""TRL's side of `step`: its GRPOTrainer with transformers' generate on W1, set to compute the very loss of Rollcall.

Of the last step it keeps the completions and the gradient, and gives the same completions to Rollcall's packed loss.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from common.data.image import read_pixels
from tests.benchmarks import w1
from tests.benchmarks.report import THREADS, emit, middle

WARM = 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--steps", type=int, default=2, help="timed steps")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    emit("step_trl", measure(dtype=arguments.dtype, steps=arguments.steps))
    return 0


def measure(*, dtype: str, steps: int) -> dict[str, Any]:
    """Medians over the timed steps in seconds; learning is all of a step that is not generating."""
    import torch

    torch.set_num_threads(THREADS)
    config = w1.config(model={"dtype": dtype})
    inputs = w1.read_inputs(config)
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as scratch:
        trainer = _trainer(inputs, scratch, dtype=dtype, steps=WARM + steps)
        trainer.train()
    if {len(ids) for ids in trainer.caught["completion_ids"]} != {w1.C}:
        raise RuntimeError(f"W1 has completions of {w1.C} tokens")
    generate, step = middle(trainer.generating[WARM:]), middle(trainer.whole[WARM:])
    return {
        "step": step,
        "stages": {"generate": generate, "learn": step - generate},
        "gradient_rel_err": _gradient_error(trainer, inputs),
    }


def _trainer(inputs: Any, folder: str, *, dtype: str, steps: int) -> Any:
    """The peer, as its users have it but for four settings that make its loss ours: `loss_type`, the bias correction of
    the KL, no gradient checkpointing (it would cost TRL time) and as many rows a forward as a step has."""
    from datasets import Dataset
    from PIL import Image
    from transformers import TrainerCallback

    trl: Any = import_module("trl")
    from common.models.processor import load_processor
    from common.models.prompts import messages

    class Timed(trl.GRPOTrainer):  # type: ignore[misc]  # trl has no types
        """Times its parts and keeps what its last step saw and computed."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.generating: list[float] = []
            self.whole: list[float] = []
            self.caught: dict[str, Any] = {}

        def _generate_single_turn(self, *arguments: Any, **settings: Any) -> Any:
            started = time.perf_counter()
            found = super()._generate_single_turn(*arguments, **settings)
            self.generating.append(time.perf_counter() - started)
            return found

        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            self.caught = {
                "rows": [one["row"] for one in inputs],
                "completion_ids": completion_ids_list,
                "rewards": rewards[:, 0].tolist(),
            }
            return rewards

        def training_step(self, *arguments: Any, **settings: Any) -> Any:
            loss = super().training_step(*arguments, **settings)
            if self.state.global_step == steps - 1:
                self.caught["gradient"] = {
                    name: one.grad.clone() for name, one in self.model.named_parameters() if one.grad is not None
                }
                self.caught["weights"] = {name: one.detach().clone() for name, one in self.model.state_dict().items()}
            return loss

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            trainer.whole.append(time.perf_counter() - self.started)

    def spelling(completions: Any, **_columns: Any) -> list[float]:
        return w1.spelling([turns[0]["content"] for turns in completions])

    examples = [inputs.data.train[row] for row in range(len(inputs.data.train))]
    rows = [
        {
            "prompt": [{"role": "user", "content": messages(example, "no_think")[0]["content"][1]["text"]}],
            "image": Image.fromarray(read_pixels(example.image)),
            "row": row,
        }
        for row, example in enumerate(examples)
    ]
    settings = trl.GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=w1.P * w1.G,
        num_generations=w1.G,
        max_completion_length=w1.C,
        max_steps=steps,
        beta=w1.BETA,
        learning_rate=w1.LR,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        loss_type="grpo",
        scale_rewards="group",
        use_bias_correction_kl=False,
        mask_truncated_completions=False,
        gradient_checkpointing=False,
        generation_kwargs={"suppress_tokens": list(inputs.model.banned)},
        model_init_kwargs={"attn_implementation": "sdpa", "dtype": "float32"},
        bf16=dtype == "bfloat16",
        use_cpu=True,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Timed(
        model=inputs.model.path,
        reward_funcs=spelling,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_processor(inputs.config.model),
        callbacks=[Clock()],
    )
    return trainer


def _gradient_error(trainer: Any, inputs: Any) -> float:
    """Relative distance, over all parameters in float64, of Rollcall's gradient of the same loss from TRL's."""
    import torch

    from common.config.schema import Config
    from learner.model.head import ScoringSpec
    from learner.model.load import load_model
    from learner.model.logprobs import packed_logprobs
    from learner.model.pack import build_pack
    from learner.objective.losses import LOSSES
    from learner.objective.records import Coefficients, StepCounts

    config: Config = inputs.config
    caught = trainer.caught
    policy, reference = load_model(inputs.model.path, config), load_model(inputs.model.path, config)
    policy.load_state_dict(caught["weights"])
    pack = build_pack(_groups(caught, inputs), policy, banned=())
    scores = packed_logprobs(policy, pack, ScoringSpec())
    with torch.no_grad():
        ref_logp = packed_logprobs(reference, pack, ScoringSpec()).logp
    counts = StepCounts(sequences=w1.P * w1.G, groups=w1.P, tokens=len(pack.row))
    loss = LOSSES["grpo"](pack.inputs(scores.logp, ref_logp, step=counts, coefficients=Coefficients(beta=w1.BETA))).loss
    loss.backward()
    found = {name: one.grad for name, one in policy.named_parameters()}
    apart = sum(
        float((found[name].double() - grad.double()).square().sum()) for name, grad in caught["gradient"].items()
    )
    size = sum(float(grad.double().square().sum()) for grad in caught["gradient"].values())
    return float((apart / size) ** 0.5)


def _groups(caught: dict[str, Any], inputs: Any) -> list[Any]:
    """What TRL sampled, as the learner is given it."""
    from common.types import Completion, Group, ScoredGroup

    groups, encoder = [], w1.local_encoder(inputs)
    for first in range(0, len(caught["rows"]), w1.G):
        rows = slice(first, first + w1.G)
        prompt = encoder.encode(inputs.data.train[caught["rows"][first]])
        completions = tuple(
            Completion(token_ids=tuple(ids), logprobs=(0.0,) * len(ids), text="", finish_reason="length")
            for ids in caught["completion_ids"][rows]
        )
        group = Group(
            prompt_id=prompt.id, completions=completions, seed=0, origin="sampled", engine_id="trl", weights_version=0
        )
        rewards = tuple(caught["rewards"][rows])
        groups.append(ScoredGroup(prompt=prompt, group=group, rewards_by_name={"spelling": rewards}, rewards=rewards))
    return groups


if __name__ == "__main__":
    raise SystemExit(main())
