"""The cold start: scripted experts play training tasks, the learners imitate them (SFT)."""

from collections.abc import Callable, Mapping

from actors.trajectory import GroupOrder
from cluster.config import RunConfig
from cluster.console import stage_progress
from cluster.learners import Learners
from cluster.rollouts import Rollouts
from learners.sft import num_sft_steps
from simulators.task import TaskSource

STEPS_PER_CALL = 10
SftLog = Callable[[int, Mapping[str, float]], None]
"""(SFT steps done, the last one's metrics)."""


def cold_start(config: RunConfig, *, learners: Learners, rollouts: Rollouts, done: int, log: SftLog) -> None:
    """Runs the SFT stage from step `done` to its end. Raises RuntimeError where no demonstration succeeded.

    Demonstrations are rolled out like any dialogue, with the expert in the engine's place.
    """
    if not config.sft.num_demonstrations:
        return
    seed = config.run.seed
    source = TaskSource(config.gyms.trained, split="train", seed=seed, difficulty=config.gyms.difficulty)
    orders = [
        GroupOrder(group_id=i, task_key=source.draw(), group_size=1, seed=seed)
        for i in range(config.sft.num_demonstrations)
    ]
    with stage_progress("demonstrations", total=len(orders)) as advance:
        tables = rollouts.sample(orders, policy=config.sft.demonstrator, advance=advance)
    num_samples = learners.set_demonstrations(tables)
    del tables  # the learners have their own copy
    if not num_samples:
        raise RuntimeError("no demonstration ended without a failure: their table's `error` column says why")
    num_steps = num_sft_steps(config.sft, num_samples=num_samples)
    with stage_progress("SFT", total=num_steps) as advance:
        for step in range(done, num_steps, STEPS_PER_CALL):
            count = min(STEPS_PER_CALL, num_steps - step)
            metrics = learners.sft_updates(first_step=step, num_steps=count)
            log(step + count, metrics)
            advance(count, f"loss {metrics['learner/loss']:.3f}")
