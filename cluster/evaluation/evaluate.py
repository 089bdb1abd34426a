"""Evaluation of a policy: rollouts without a learner, on the same actors and with the same turn budget,
observations and sampling as in training."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import ray

from actors.scripts import Script
from actors.trajectory import GroupOrder
from cluster.config.run_config import RunConfig
from cluster.console.progress import stage_progress
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.outcomes import outcomes_of
from cluster.evaluation.results import EvaluationRow, evaluation_rows
from cluster.workers.play_orders import OrderPlayer
from simulators.env_factory import load_tasks
from simulators.task import Split, TaskKey

WRITE_TIMEOUT_S = 120.0


def evaluate(
    config: RunConfig, *, player: OrderPlayer, stage: str, archive: Path | None, split: Split = "test"
) -> list[EvaluationRow]:
    """One dialogue on each held-out task, or on each validation task of the trained gyms; its tables go to
    `evaluation-<stage>.parquet` in the archive folder."""
    if split == "validation":
        orders = validation_orders(config)
    else:
        orders = evaluation_orders(config, split=split, num_trials=1)
    mix = "+".join(user.name for user in config.simulator.users if user.weight > 0)
    aspects = num_aspects(config, orders)
    outcomes: list[DialogueOutcome] = []

    def keep(tables: Sequence[pa.Table]) -> None:
        for table in tables:
            outcomes.extend(outcomes_of(table, policy=stage, simulator=mix, num_aspects=aspects))

    path = None if archive is None else archive / f"evaluation-{stage}.parquet"
    play(orders, player=player, policy=None, title=f"evaluate {stage}", keep=keep, archive=path)
    return evaluation_rows(
        outcomes, stage=stage, seed=config.run.seed, held_out=config.gyms.held_out, split=split
    )


def play(
    orders: Sequence[GroupOrder],
    *,
    player: OrderPlayer,
    policy: Script | None,
    simulator: str | None = None,
    title: str,
    keep: Callable[[Sequence[pa.Table]], None],
    archive: Path | None = None,
) -> None:
    """Plays these orders. `keep` gets the dialogues of each group, text without tokens, soon after its end;
    `archive` is a file for all of their tables."""
    with stage_progress(title, total=len(orders)) as advance:

        def finish(tables: Sequence[pa.Table]) -> None:
            keep(tables)
            advance(len(tables), "")

        feed, _ = player.run(orders, policy=policy, simulator=simulator, finish=finish)
    if archive is not None:
        ray.get(feed.write.remote(archive), timeout=WRITE_TIMEOUT_S)
    ray.kill(feed)  # what is wanted of it is here or on disk


def validation_orders(config: RunConfig) -> list[GroupOrder]:
    """By what a checkpoint is chosen: a gym held out of training is held out of this choice as well."""
    return orders_for(
        list(config.gyms.trained),
        split="validation",
        num_tasks=config.evaluation.validation_tasks_per_gym,
        seed=config.run.seed,
        difficulty=config.gyms.difficulty,
    )


def orders_for(
    gyms: Sequence[str], *, split: Split, num_tasks: int, seed: int, difficulty: int, group_size: int = 1
) -> list[GroupOrder]:
    """`group_size` dialogues for each of `num_tasks` tasks of every gym, gyms taking turns."""
    keys = [
        TaskKey(gym=gym, split=split, index=index, seed=seed, difficulty=difficulty)
        for index in range(num_tasks)
        for gym in gyms
    ]
    return [
        GroupOrder(group_id=i, task_key=key, group_size=group_size, seed=seed) for i, key in enumerate(keys)
    ]


def evaluation_orders(config: RunConfig, *, split: Split, num_trials: int) -> list[GroupOrder]:
    """`tasks_per_gym` tasks of every gym of the run, or as many as its file has."""
    orders = orders_for(
        config.gyms.evaluated,
        split=split,
        num_tasks=config.evaluation.tasks_per_gym,
        seed=config.run.seed,
        difficulty=config.gyms.difficulty,
        group_size=num_trials,
    )
    gyms = config.gyms.open(with_data=False)
    in_file = {gym: len(load_tasks(gyms[gym], path)) for gym, path in config.gyms.data.items()}
    keys = ((order, order.task_key) for order in orders)
    return [order for order, key in keys if key.index < in_file.get(key.gym, key.index + 1)]


def num_aspects(config: RunConfig, orders: Sequence[GroupOrder]) -> dict[str, int]:
    """By task id: the parts of a trip, by which the released Travel metric divides. Empty under our rules,
    where the rewards of all parts sum to 1."""
    keys = [order.task_key for order in orders if order.task_key.gym == "travel"]
    if config.gyms.preset != "published" or not keys:
        return {}
    travel = config.gyms.open()["travel"]
    return {key.task_id: len(travel.make_task(key).scenario["aspects"]) for key in keys}
