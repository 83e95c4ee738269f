"""A run at Trackio: a data base on this machine (TRACKIO_DIR), or a Space of the hub (TRACKIO_SPACE_ID)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from learner.tracking.services.service import COLUMNS, RunFacts, SentSample, list_rows


class TrackioRun:
    """One run there."""

    def __init__(self, facts: RunFacts) -> None:
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=facts.project,
            name=f"{facts.name}-{facts.id}",  # by which a resumed run is found
            resume="allow",
            config=dict(facts.config),
            embed=False,
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send numbers."""
        self._run.log(dict(scalars), step=step)

    def log_samples(self, step: int, samples: Sequence[SentSample]) -> None:
        """Send a table."""
        import pandas as pd

        rows = list_rows(step, samples, lambda image: self._trackio.Image(str(image)))
        self._run.log({"samples": self._trackio.Table(dataframe=pd.DataFrame(rows, columns=list(COLUMNS)))}, step=step)

    def finish(self, outcome: str) -> None:
        """Send what is left, and end the run."""
        self._run.finish()
