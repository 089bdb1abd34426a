"""Non-finite numbers: each is dropped under its reason and counted, at the buffer and at the learner, and the
others train as if it were not there."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.group_summary import summarize
from actors.trajectory import StopReason, Turn
from learners.advantages.estimators import ADVANTAGES
from learners.batch.samples import TrainingSample
from learners.buffer.buffer import Buffer, BufferSizes
from learners.config import LearnerConfig
from learners.drop_reasons import LEARNER_REASONS, LEDGER_REASONS
from learners.training.forward_scoring import ForwardScorer
from learners.training.step_batch import samples_of_step
from simulators.task import TaskSource
from tests.fakes import credited
from tests.learners.tiny_parts import make_table, make_turn, tiny_policy

DONE, FAILED = StopReason.TERMINATED, StopReason.ENGINE_ERROR
BAD = [math.nan, math.inf, -math.inf]
CONFIG = LearnerConfig()


def turns_of(reward: float, *, completion: tuple[int, ...] = (4, 5), logprob: float = -0.5) -> list[Turn]:
    """Two turns; the second has the reward, and its last token has this logprob."""
    first = make_turn([1, 2], completion and (3,), reward=0.0, forked=True)
    second = make_turn([6], completion, reward=reward, forked=False)
    logprobs = np.array([*second.completion.logprobs[:-1], logprob] if completion else [], np.float32)
    return [first, replace(second, completion=replace(second.completion, logprobs=logprobs))]


def group_of(*trajectories: list[Turn], ends: list[StopReason] | None = None) -> pa.Table:
    return make_table(list(zip(trajectories, ends or [DONE] * len(trajectories), strict=True)))


GOOD = (turns_of(1.0), turns_of(0.0), turns_of(0.25))


def learned(table: pa.Table, config: LearnerConfig = CONFIG) -> tuple[list[TrainingSample], dict[str, float]]:
    """The learner's samples of one group, and its counts of dropped trajectories."""
    scorer = ForwardScorer(
        policy=tiny_policy(), device=torch.device("cpu"), max_tokens=64, rank=0, num_ranks=1, seed=0
    )
    samples, metrics, _ = samples_of_step([table], config=config, renderer=None, scorer=scorer)
    dropped = {reason: metrics[f"learner/num_dropped/{reason}"] for reason in LEARNER_REASONS}
    return samples, {reason: count for reason, count in dropped.items() if count}


def outcomes_of(table: pa.Table) -> dict[str, int]:
    """The buffer's counts of the group's outcomes, after a step."""
    size = len(set(table["trajectory"].to_pylist()))
    sizes = BufferSizes(group_size=size, groups_per_step=1, max_off_policy_steps=0, seed=0)
    source = TaskSource({"function": 1.0}, split="train", seed=0, difficulty=0)
    buffer = Buffer(sizes, source=source)
    order = buffer.issue()
    assert order is not None
    table = table.set_column(0, "group_id", pa.array([order.group_id] * table.num_rows))
    buffer.put(order, summary=summarize(order, credited(table), duration_s=1.0), payload=table)
    for group in buffer.take(1, policy_version=0) or []:
        buffer.mark_trained([group.order.group_id])
        buffer.release([group.order.group_id])
    ledger = buffer.ledger()
    assert ledger.in_flight == 0 and ledger.dropped.keys() == set(LEDGER_REASONS)
    counts = {"trained": ledger.trained, **ledger.dropped}
    return {outcome: count for outcome, count in counts.items() if count}


def same(found: list[TrainingSample], expected: list[TrainingSample]) -> bool:
    return [s.token_ids.tolist() for s in found] == [s.token_ids.tolist() for s in expected] and all(
        np.array_equal(one.advantages, other.advantages) for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("reward", BAD)
def test_a_non_finite_reward_counts_as_unscored_and_changes_no_other_advantage(reward: float):
    table = group_of(*GOOD, turns_of(reward))
    samples, dropped = learned(table)
    assert same(samples, learned(group_of(*GOOD))[0])
    assert dropped == {"unscored": 1.0}
    assert outcomes_of(table) == {"trained": 3, "unscored": 1}


@pytest.mark.parametrize("logprob", BAD)
def test_a_non_finite_logprob_drops_its_trajectory_and_not_the_step(logprob: float):
    """Its reward is good and stays in the group's mean."""
    samples, dropped = learned(group_of(*GOOD, turns_of(0.5, logprob=logprob)))
    assert dropped == {"bad_logprob": 1.0}
    assert same(samples, learned(group_of(*GOOD, turns_of(0.5)))[0][:3])
    assert all(np.isfinite(sample.behavior_logprobs).all() for sample in samples)


def test_a_trajectory_without_policy_tokens_is_counted_under_its_reason():
    table = group_of(*GOOD, turns_of(0.5, completion=()))
    samples, dropped = learned(table)
    assert [sample.trajectory for sample in samples] == [0, 1, 2]
    assert dropped == {"no_tokens": 1.0}
    assert outcomes_of(table) == {"trained": 3, "no_tokens": 1}


def test_a_failed_trajectory_is_counted_as_failed_even_with_other_defects():
    table = group_of(*GOOD, turns_of(1.0, logprob=math.nan), [], ends=[DONE] * 3 + [FAILED] * 2)
    samples, dropped = learned(table)
    assert (len(samples), dropped) == (3, {"failed": 2.0})
    assert outcomes_of(table) == {"trained": 3, "failed": 2}


def test_each_reason_is_counted_once():
    bad = [turns_of(math.nan), turns_of(0.5, logprob=math.inf), turns_of(0.5, completion=())]
    cut = [FAILED, StopReason.TIME_LIMIT, StopReason.SURPLUS]
    samples, dropped = learned(group_of(*GOOD, *bad, *[turns_of(1.0)] * 3, ends=[DONE] * 6 + cut))
    assert len(samples) == 3
    assert dropped == dict.fromkeys(LEARNER_REASONS, 1.0)


@pytest.mark.parametrize("advantage", [name for name in ADVANTAGES if name != "turn_gae"])
@pytest.mark.parametrize("rewards", [[1.0], [0.5, 0.5, 0.5], [1e300, -1e300], [math.inf, math.nan]])
def test_no_estimator_gives_a_trained_token_a_non_finite_advantage(advantage: Any, rewards: list[float]):
    """A group of one, rewards all equal, rewards beyond float32, and none at all."""
    config = LearnerConfig.model_validate({"advantage": advantage})
    with np.errstate(all="ignore"):
        samples, dropped = learned(group_of(*map(turns_of, rewards)), config)
    assert all(np.isfinite(sample.advantages).all() for sample in samples)
    assert len(samples) + sum(dropped.values()) == len(rewards)
    # Estimators that compare trajectories give zeros; the others compare turns, which differ.
    if max(rewards) == min(rewards) and advantage in ("grpo", "dr_grpo", "rloo"):
        assert not any(sample.advantages.any() for sample in samples)


@pytest.mark.parametrize(
    ("trajectories", "outcome"),
    [
        ([turns_of(1.0)], {"too_few": 1}),
        ([turns_of(0.5)] * 3, {"flat": 3}),
        ([turns_of(math.nan)] * 3, {"unscored": 3}),
        ([turns_of(0.5, completion=())] * 2, {"no_tokens": 2}),
        ([turns_of(0.5, completion=()), turns_of(1.0)], {"no_tokens": 1, "too_few": 1}),
    ],
)
def test_the_buffer_drops_a_group_without_a_gradient(trajectories: list[list[Turn]], outcome: dict[str, int]):
    assert outcomes_of(group_of(*trajectories)) == outcome


def test_an_empty_table_has_no_samples():
    assert learned(group_of(*GOOD).slice(0, 0)) == ([], {})
