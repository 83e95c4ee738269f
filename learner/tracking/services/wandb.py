"""A run at Weights & Biases. Its client takes key, server and mode from the environment: WANDB_API_KEY, WANDB_MODE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from learner.tracking.services.service import COLUMNS, RunFacts, SentSample, list_rows


class WandbRun:
    """One run there."""

    def __init__(self, facts: RunFacts) -> None:
        import wandb

        quiet = wandb.Settings(console="off", disable_git=True, save_code=False, silent=True, x_disable_stats=True)
        self._wandb = wandb
        self._run = wandb.init(
            project=facts.project,
            name=facts.name,
            id=facts.id,
            resume="allow",
            dir=str(facts.folder),
            config=dict(facts.config),
            settings=quiet,
        )
        # A resumed run takes steps again, which wandb's own count of them would refuse.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send numbers; they are drawn over `step`."""
        self._run.log({**scalars, "step": step})

    def log_samples(self, step: int, samples: Sequence[SentSample]) -> None:
        """Send a table, and the pictures for a panel of their own."""
        rows = list_rows(step, samples, lambda image: self._wandb.Image(str(image)))
        table = self._wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        shown = [self._wandb.Image(str(one.image), caption=one.label) for one in samples if one.image]
        self._run.log({"samples": table, "pictures": shown, "step": step})

    def finish(self, outcome: str) -> None:
        """End the run, as failed where it was not finished."""
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
