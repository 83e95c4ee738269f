"""A run at MLflow, whose client takes server and keys from the environment: MLFLOW_TRACKING_URI and others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from learner.tracking.services.service import RunFacts, SentSample

TAG = "rollcall.run"  # by which a resumed run is found
MOST = 100  # parameters that one call takes
LONGEST = 6000  # characters of one
STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}  # any other outcome has failed


class MlflowRun:
    """One run there: a run of the experiment that is named as the project."""

    def __init__(self, facts: RunFacts) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(facts.project)
        experiment = found.experiment_id if found else self._client.create_experiment(facts.project)
        self._id = self._find(experiment, facts.id) or self._create(experiment, facts)

    def _find(self, experiment: str, run: str) -> str | None:
        """Return the id of an earlier start's run, which goes on."""
        found = self._client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{run}'", max_results=1)
        if not found:
            return None
        self._client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)

    def _create(self, experiment: str, facts: RunFacts) -> str:
        from mlflow.entities import Param

        created = self._client.create_run(experiment, run_name=facts.name, tags={TAG: facts.id})
        params = [Param(key, str(value)[:LONGEST]) for key, value in facts.config.items()]
        for start in range(0, len(params), MOST):
            self._client.log_batch(created.info.run_id, params=params[start : start + MOST])
        return str(created.info.run_id)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send numbers."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in scalars.items()])

    def log_samples(self, step: int, samples: Sequence[SentSample]) -> None:
        """Send the groups as a file of JSON, and their pictures beside it."""
        rows: list[dict[str, Any]] = []
        for one in samples:
            if one.image:
                self._client.log_artifact(self._id, str(one.image), "samples")
            said = [{"text": text, "reward": reward} for text, reward in one.completions]
            picture = one.image.name if one.image else None
            rows.append({"picture": picture, "question": one.problem, "label": one.label, "answers": said})
        self._client.log_dict(self._id, {"step": step, "groups": rows}, f"samples/{step:06}.json")

    def finish(self, outcome: str) -> None:
        """End the run."""
        self._client.set_terminated(self._id, STATUS.get(outcome, "FAILED"))
