"""Group orders for dialogues outside GRPO: demonstrations and evaluations."""

from collections.abc import Sequence

from actors.trajectory import GroupOrder
from simulators.task import Split, TaskKey


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
