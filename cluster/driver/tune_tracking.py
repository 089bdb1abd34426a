"""Tracking of sweeps: a trial of Ray Tune has a run folder and a W&B run of its own, grouped under the
recipe's name. Outside Tune nothing is tracked here: `userrl train` does it by itself.
"""

from typing import Any, cast

from ray.tune.result import TRIAL_INFO

from cluster.config.run_config import RunConfig
from cluster.driver.rllib_checkpoints import StatelessAlgorithm
from cluster.run_folder.paths import RunFolder
from cluster.tracking.tracker import Tracker


class TrackedAlgorithm(StatelessAlgorithm):
    """Tells metrics.jsonl, the console and W&B of every step of a trial."""

    run: RunConfig
    folder: RunFolder
    policy_version: int
    step_metrics: dict[str, float]
    tracker: Tracker | None = None

    def __init__(self, config: Any = None, *args: Any, **kwargs: Any):
        # RLlib leaves it out of what it makes of `config`.
        self.trial: Any = config.get(TRIAL_INFO) if type(config) is dict else None
        """What Tune says of the trial; None outside Tune."""
        super().__init__(cast(Any, config), *args, **kwargs)

    def log_result(self, result: dict[str, Any]) -> None:
        """Called by Tune's `train` after each step."""
        super().log_result(result)
        if self.trial is None:
            return
        if self.tracker is None:  # only now is it known from where a restored trial has gone on
            name = self.run.run.name.removesuffix(f"-{self.trial.trial_id}")
            before = self.policy_version - 1
            self.tracker = Tracker(self.folder, config=self.run, resume_step=before, group=name)
        self.tracker.log_step(self.policy_version, metrics=self.step_metrics)

    def cleanup(self) -> None:
        if self.tracker is not None:
            self.tracker.close()
            self.tracker = None
        super().cleanup()
