"""Driver loop without learners and engines: real rollout actors, a real buffer and a scripted policy, to
measure its own cost."""

import math
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.config import RolloutConfig
from bench.scripted_dialogues import GROUP_SIZE, GYM, create_buffer, scripted_setup, write_policy
from bench.short_trainings import give_up
from cluster.config.gyms import GymsConfig
from cluster.config.run_config import BufferConfig, RunConfig
from cluster.driver.algorithm_config import create_rollouts
from cluster.workers.buffer_client import BufferClient
from cluster.workers.engine_pool import no_engines
from cluster.workers.rollout_pool import Assignment, RolloutPool
from cluster.workers.supervisor import Supervisor

CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """One stretch of a driver's loop."""

    wall_s: float
    num_trajectories: int
    driver_s: float
    """CPU seconds of the driver's process, and of the buffer's and the rollout actors' below."""
    buffer_s: float
    actors_s: float
    busy: float
    """Share of the machine's CPUs that anything used."""

    @property
    def rate(self) -> float:
        return self.num_trajectories / self.wall_s


class Loop:
    """A driver's loop over real rollout actors and a real buffer, with nobody who learns."""

    def __init__(self, *, folder: Path, user_delay_s: float):
        self._folder = folder
        self._policy_folder = write_policy(folder / "policy")
        self._setup = partial(scripted_setup, policy_folder=self._policy_folder, delay_s=user_delay_s)
        self._num_actors = 1
        run = _run_config(num_actors=1, dialogues_per_actor=GROUP_SIZE, groups_per_step=1)
        self._engines = no_engines()
        self._rollouts: RolloutPool = create_rollouts(run, self._setup(run.rollout), engines=self._engines)
        self._env_runners: Any = self._rollouts._env_runners

    def grow(self, num_actors: int) -> None:
        """Rollout actors are added until there are so many, and all of them run."""
        if num_actors > self._num_actors:
            self._env_runners.add_workers(num_actors - self._num_actors)
            self._num_actors = num_actors
        assert len(self._each(lambda actor: os.getpid())) == num_actors, "a rollout actor did not start"

    def measure(
        self, *, dialogues_per_actor: int, groups_per_step: int, warm_up: int, num_steps: int
    ) -> Usage:
        """Steps after those that warm up, from a buffer that holds no more than the dialogues in flight and
        two steps."""
        config = _run_config(
            num_actors=self._num_actors,
            dialogues_per_actor=dialogues_per_actor,
            groups_per_step=groups_per_step,
        )
        self._each(partial(give_up, setup=self._setup(config.rollout)))
        buffer = create_buffer(config, run_folder=self._folder)
        client = BufferClient(buffer, run=config, archive=self._folder)
        training = Assignment(source=buffer, group_size=config.rollout.num_dialogues)
        supervisor = Supervisor(
            self._rollouts, self._engines, deliver_weights=lambda: None, training=training
        )
        try:
            for _ in range(warm_up):
                _step(client, supervisor)
            before = self._clocks(buffer)
            num_trajectories = sum(_step(client, supervisor) for _ in range(num_steps))
            passed = [now - then for now, then in zip(self._clocks(buffer), before, strict=True)]
        finally:
            self._each(partial(give_up, setup=None))
            ray.kill(buffer)
        wall_s, driver_s, buffer_s, actors_s, busy_s, all_s = passed
        return Usage(
            wall_s=wall_s,
            num_trajectories=num_trajectories,
            driver_s=driver_s,
            buffer_s=buffer_s,
            actors_s=actors_s,
            busy=busy_s / all_s,
        )

    def _clocks(self, buffer: Any) -> list[float]:
        """Seconds: of the wall, of three kinds of processes, of the CPUs that were busy, of all CPUs."""
        actors_s = math.fsum(self._each(lambda actor: time.process_time()))
        buffer_s: float = ray.get(buffer.__ray_call__.remote(_process_time), timeout=CALL_TIMEOUT_S)
        return [time.perf_counter(), time.process_time(), buffer_s, actors_s, *_machine_clock()]

    def _each(self, work: Any) -> list[Any]:
        return self._env_runners.foreach_env_runner(
            work, local_env_runner=False, timeout_seconds=CALL_TIMEOUT_S
        )


def _run_config(*, num_actors: int, dialogues_per_actor: int, groups_per_step: int) -> RunConfig:
    in_flight = num_actors * dialogues_per_actor // GROUP_SIZE
    return RunConfig(
        gyms=GymsConfig(weights={GYM: 1.0}),
        rollout=RolloutConfig(
            num_actors=num_actors, dialogues_per_actor=dialogues_per_actor, group_size=GROUP_SIZE
        ),
        # Slots for all that fit the actors, and for two steps that are ready or being released.
        buffer=BufferConfig(
            groups_per_step=groups_per_step, max_off_policy_steps=-(-in_flight // groups_per_step) + 1
        ),
    )


def _process_time(actor: object) -> float:
    return time.process_time()


def _step(client: BufferClient, supervisor: Supervisor) -> int:
    """What the driver does in a step, without learners and engines. Trajectories."""
    taken = client.take(policy_version=0, supervisor=supervisor)
    client.mark_trained(taken, step=1)
    client.release(taken, policy_version=0, live=[])
    client.finish_release()
    client.metrics()
    return sum(len(group.summary.usable) for group in taken)


def _machine_clock() -> tuple[float, float]:
    """CPU seconds of this machine since it started: busy, and all."""
    user, nice, system, idle, io_wait, *others = map(
        float, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    busy = user + nice + system + sum(others[:3])
    ticks = os.sysconf("SC_CLK_TCK")
    return busy / ticks, (busy + idle + io_wait) / ticks
