"""Non-finite steps change neither weights nor optimizer; tested on learners in a LearnerGroup."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.trajectory_table import REWARD
from learners.sft_config import SftConfig
from tests.learners.learner_groups import group_config, on_each, start, stored, write_policy
from tests.learners.test_non_finite_rewards import GOOD, group_of, turns_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_ray")]

POISON: dict[str, Callable[[], list[pa.Table]]] = {
    "every reward": lambda: [with_rewards(group_of(*GOOD), math.nan)],
    "every logprob": lambda: [group_of(*(turns_of(float(i), logprob=math.nan) for i in range(3)))],
    "no groups": list,
    "an empty group": lambda: [group_of(*GOOD).slice(0, 0)],
}


def with_rewards(table: pa.Table, reward: float) -> pa.Table:
    index = table.schema.get_field_index(REWARD.name)
    return table.set_column(index, REWARD, pa.array(np.full(table.num_rows, reward)))


def test_a_non_finite_step_changes_neither_weights_nor_optimizer(tmp_path: Path):
    """Through the learner itself. In between good steps move the weights: what must not move could."""
    config = group_config(write_policy(tmp_path), num_learners=0, sft=SftConfig())
    group = start(config)

    def step(tables: list[pa.Table], number: int) -> dict[str, float]:
        refs = [stored(table) for table in tables]
        (metrics,) = on_each(group, lambda learner: learner.update_groups(refs, step=number))
        return metrics

    def state() -> tuple[dict[str, torch.Tensor], str]:
        ((weights, optimizer),) = on_each(
            group,
            lambda learner: (
                {name: tensor.clone() for name, tensor in learner._learner._policy.state_dict().items()},
                str(learner._learner._optimizer.state_dict()),
            ),
        )
        return weights, optimizer

    def moved(before: tuple[dict[str, torch.Tensor], str]) -> bool:
        weights, optimizer = state()
        same_weights = all(tensor.equal(before[0][name]) for name, tensor in weights.items())
        assert same_weights == (optimizer == before[1])
        return not same_weights

    assert step([group_of(*GOOD)], 0)["learner/num_skipped"] == 0.0
    for name, tables in POISON.items():
        before = state()
        metrics = step(tables(), 1)
        assert metrics["learner/num_skipped"] == 1.0, name
        assert not moved(before), name
        assert metrics["learner/num_loss_tokens"] == 0.0, name

    for value in (math.nan, math.inf):
        before = state()
        hooks = on_each(
            group,
            lambda learner, v=value: learner._learner._policy.head.register_hook(
                lambda gradient: gradient + v
            ),
        )
        metrics = step([group_of(*GOOD)], 1)
        assert metrics["learner/num_skipped"] == 1.0 and not math.isfinite(metrics["learner/grad_norm"])
        assert not moved(before)
        for hook in hooks:
            hook.remove()

    before = state()
    mixed = group_of(*GOOD, turns_of(math.nan), turns_of(0.5, logprob=math.nan))
    metrics = step([mixed, group_of(*GOOD).slice(0, 0)], 1)
    assert metrics["learner/num_skipped"] == 0.0
    assert (metrics["learner/num_dropped/unscored"], metrics["learner/num_dropped/bad_logprob"]) == (1.0, 1.0)
    assert math.isfinite(metrics["learner/loss"]) and moved(before)
