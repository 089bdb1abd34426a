"""Credits of a step, from the learner's samples through the buffer to the rows on disk, also after a kill.
Uses the real buffer, without Ray."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from actors.group_summary import summarize
from actors.group_transport import FinishedGroup, GroupBatch
from actors.trajectory import StopReason
from learners.advantages.config import SpreadConfig
from learners.advantages.group_advantages import credit_group
from learners.buffer.buffer import BufferSizes
from learners.buffer.credit_columns import CREDITS, KEYS
from learners.config import LearnerConfig
from learners.training.step_batch import samples_of_step, trajectories_of
from learners.training.turn_credit_table import credit_table
from tests.learners.local_buffer import LocalBuffer, Stored, make_local_buffer
from tests.learners.test_non_finite_rewards import turns_of
from tests.learners.tiny_parts import make_table, scorer_of, tiny_policy

LIMIT_S = 30.0
SIZES = BufferSizes(group_size=3, groups_per_step=2, max_off_policy_steps=1, seed=0)
CONFIG = LearnerConfig(advantage=SpreadConfig(trajectory_score="sum"))
DONE, FAILED = StopReason.TERMINATED, StopReason.ENGINE_ERROR
GOOD, FLAT = (1.0, 0.0, 0.5), (0.5, 0.5, 0.5)


def make_buffer(folder: Path) -> LocalBuffer:
    return make_local_buffer(folder, SIZES, group_timeout_s=LIMIT_S)


async def play(buffer: LocalBuffer, rewards: tuple[float, ...], *, last: StopReason = DONE) -> None:
    (order,) = await buffer.next_orders("a", 1) or []
    ends = [*[DONE] * (len(rewards) - 1), last]
    table = make_table(list(zip(map(turns_of, rewards), ends, strict=True)), group_id=order.group_id)
    group = credit_group(table, True, credit_of=CONFIG.credit_of)
    summary = summarize(order, group, duration_s=1.0)
    finished = FinishedGroup(order=order, summary=summary, payload=group.table)
    assert await buffer.put(GroupBatch.of([finished])) == [True]


async def learn(groups: list[FinishedGroup]) -> Any:
    """A reference to the learner's credit table of these groups."""
    tables = [await group.payload for group in groups]
    samples, _, credited = samples_of_step(
        tables, config=CONFIG, renderer=None, scorer=scorer_of(tiny_policy())
    )
    trained = trajectories_of(samples)
    return Stored(credit_table(credited, credit_of=CONFIG.credit_of, trained=trained, loss_advantages={}))


async def step(buffer: LocalBuffer, number: int) -> None:
    """A step on two groups."""
    groups = await buffer.take(2, number - 1, LIMIT_S)
    ids = [group.order.group_id for group in groups]
    await buffer.mark_trained(ids, number, [await learn(groups)])
    await buffer.release(ids, number)


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    columns = [*KEYS.names, "outcome", *CREDITS.names]
    return pq.read_table(folder / "trajectories" / f"{name}.parquet", columns=columns).to_pylist()


async def test_trained_rows_have_the_advantage_of_the_loss_and_dropped_rows_none(tmp_path: Path):
    """Sums 1, 0 and 1/2 are sqrt(3/2), its opposite and 0 from their mean; without the last, +1 and -1."""
    buffer = make_buffer(tmp_path)
    await play(buffer, FLAT)
    await play(buffer, GOOD)
    await play(buffer, GOOD, last=FAILED)
    await step(buffer, 1)
    await buffer.close()
    rows = rows_of(tmp_path, "step-00001")
    assert [row["outcome"] for row in rows] == (
        ["dropped:flat"] * 6 + ["trained"] * 6 + ["trained"] * 4 + ["dropped:failed"] * 2
    )
    far = 1.5**0.5
    expected = [None] * 6 + [far, far, -far, -far, 0.0, 0.0] + [1.0, 1.0, -1.0, -1.0] + [None] * 2
    for row, advantage in zip(rows, expected, strict=True):
        assert (row["advantage"] is None) == (advantage is None) == (row["outcome"] != "trained")
        assert abs((row["advantage"] or 0.0) - (advantage or 0.0)) < 1e-6
        assert row["credit"] == (None if advantage is None else 1.0)
        assert row["value"] is row["gain"] is None


async def test_a_step_repeated_after_a_kill_writes_the_same_credits(tmp_path: Path):
    """Everything is killed after the second step; the only checkpoint is of the first."""
    first = make_buffer(tmp_path)
    await play(first, GOOD)
    await play(first, GOOD)
    await step(first, 1)
    state = json.loads(json.dumps(await first.state()))
    for rewards in (FLAT, GOOD, GOOD):
        await play(first, rewards)
    await step(first, 2)
    await first.close()
    wanted = [rows_of(tmp_path, name) for name in ("step-00001", "step-00002")]
    assert [sum(row["advantage"] is not None for row in rows) for rows in wanted] == [12, 12]

    second = make_buffer(tmp_path)
    assert await second.restore(state, 1, replay=True) == 1
    assert [path.stem for path in (tmp_path / "trajectories").iterdir()] == ["step-00001"]
    await step(second, 2)
    await second.close()
    assert [rows_of(tmp_path, name) for name in ("step-00001", "step-00002")] == wanted
