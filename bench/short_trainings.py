"""Short trainings in the processes of one run, since Ray and vLLM take longer to start: each starts from
the same policy after a cold start, with its own buffer, task order and users."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray

from actors.rollout_actor import RolloutActor
from actors.rollout_setup import RolloutSetup
from cluster.config.run_config import RunConfig
from cluster.driver.algorithm import GRPO, GRPOConfig
from cluster.driver.algorithm_config import merged
from cluster.workers.services import create_buffer, make_rollout_setup

CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step of a trial."""

    ended_s: float
    """Seconds since the trial's first step began."""
    metrics: dict[str, float]


class Trials:
    """One `GRPO` algorithm, brought back to its cold-started policy before every trial."""

    def __init__(self, config: RunConfig):
        algorithm = GRPOConfig(run=config).build_algo()
        assert isinstance(algorithm, GRPO)
        self.algorithm = algorithm
        self._config = config
        algorithm.cold_start()
        self._start = Path(algorithm.save_to_path(algorithm.folder.path / "cold-started"))

    def steps(self, *, num_steps: int, **settings: dict[str, Any]) -> list[Step]:
        """Trains from the cold-started policy, with `settings` (sections of a recipe) that differ from the
        run's: what rollouts and the buffer obey, not engine and learner, which live on. No dialogue of
        an earlier trial is left."""
        self._begin(RunConfig.model_validate(merged(self._config.model_dump(), settings)))
        began, done = time.perf_counter(), list[Step]()
        for _ in range(num_steps):
            self.algorithm.train()
            done.append(Step(ended_s=time.perf_counter() - began, metrics=dict(self.algorithm.step_metrics)))
        return done

    def score(self) -> tuple[float, float, float]:
        """Of the policy as the last trial left it, on held-out tasks with the run's own users: mean and 95 %
        interval."""
        self._set_aside(self._setup(self._config))
        row = next(row for row in self.algorithm.evaluate_stage("trial") if row.gym == "average")
        return row.score, row.low, row.high

    def _begin(self, run: RunConfig) -> None:
        algorithm = self.algorithm
        algorithm.parts.finish_sync()
        setup = self._setup(run)
        self._set_aside(setup)
        services = algorithm.parts.services
        ray.kill(services.buffer)
        buffer = create_buffer(run, run_folder=algorithm.folder.path)
        algorithm.run = run
        services = replace(services, config=run, buffer=buffer, rollout_setup=setup)
        algorithm.parts.connect_services(run, services)
        algorithm.restore_from_path(self._start)

    def _setup(self, run: RunConfig) -> RolloutSetup:
        return make_rollout_setup(
            run, policy_folder=self.algorithm.parts.services.rollout_setup.policy_folder
        )

    def _set_aside(self, setup: RolloutSetup) -> None:
        """Rollout actors give up their work, and work by `setup` from here on."""
        group: Any = self.algorithm.env_runner_group
        given_up = group.foreach_env_runner(
            partial(give_up, setup=setup), local_env_runner=False, timeout_seconds=CALL_TIMEOUT_S
        )
        assert len(given_up) == self._config.rollout.num_actors, "a rollout actor did not answer"


def give_up(actor: RolloutActor, *, setup: RolloutSetup | None) -> None:
    """In the actor: its own `stop` would end the event loop as well."""
    for work in actor._work.values():
        work.cancel()
    actor._work.clear()
    if setup is not None:
        actor._setup = setup
        actor._users.clear()


@contextmanager
def trials(config: RunConfig) -> Iterator[Trials]:
    """Started, and ended with all its processes."""
    started = Trials(config)
    try:
        yield started
    finally:
        cast(Any, started.algorithm).stop()
