"""Demonstrations come in the order of their orders, whoever dies: a stopped cold start finds the same."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from actors.trajectory import GroupOrder
from cluster.rollouts import CHUNK, Rollouts
from simulators.task import TaskSource


class DyingActors:
    """Two actors; the first dies in the first round, with its chunk."""

    def __init__(self) -> None:
        self.num_rounds = 0

    def healthy_env_runner_ids(self) -> list[int]:
        return [1, 2]

    def foreach_env_runner(self, work: Sequence[Callable[[Any], Any]], **_: Any) -> list[Any]:
        self.num_rounds += 1
        actor = SimpleNamespace(sample=lambda orders, policy: [order.group_id for order in orders])
        return [one(actor) for one in (work[1:] if self.num_rounds == 1 else reversed(work))]


def test_tables_keep_the_order_of_their_orders_though_an_actor_died() -> None:
    source = TaskSource({"travel": 1.0}, split="train", seed=0, difficulty=0)
    orders = [
        GroupOrder(group_id=i, task_key=source.draw(), group_size=1, seed=0) for i in range(2 * CHUNK + 3)
    ]
    counts: list[int] = []
    tables: Any = Rollouts(DyingActors(), engines=[], restore=lambda: None, group_timeout_s=60.0).sample(
        orders, policy="expert", advance=lambda count, _: counts.append(count)
    )
    assert [group_id for table in tables for group_id in table] == list(range(len(orders)))
    assert counts == [CHUNK, CHUNK + 3]
