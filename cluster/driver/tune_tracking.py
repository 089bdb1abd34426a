"""Tracking of a Ray Tune trial: its own run folder and W&B run, grouped under the recipe's name. Outside Tune
`userrl train` does the tracking.
"""

from collections.abc import Mapping
from typing import Any

from ray.tune.result import TRIAL_INFO

from cluster.config.run_config import RunConfig
from cluster.run_folder.paths import RunFolder
from cluster.tracking.tracker import Tracker


class TrialTracking:
    """Logs the steps of one trial to metrics.jsonl, the console and W&B."""

    def __init__(self, trial: Any):
        """`trial` is Tune's TrialInfo."""
        self.trial_id: str = trial.trial_id
        self._tracker: Tracker | None = None

    @classmethod
    def of(cls, config: Any) -> "TrialTracking | None":
        """For the config that RLlib's constructor gets from Tune, a dict; None outside Tune."""
        trial = config.get(TRIAL_INFO) if type(config) is dict else None
        return None if trial is None else cls(trial)

    def log_step(self, step: int, *, metrics: Mapping[str, float], folder: RunFolder, run: RunConfig) -> None:
        """Opens the tracker at the first step: only then is it known where a restored trial resumes."""
        if self._tracker is None:
            name = run.run.name.removesuffix(f"-{self.trial_id}")
            self._tracker = Tracker(folder, config=run, resume_step=step - 1, group=name)
        self._tracker.log_step(step, metrics=metrics)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None
