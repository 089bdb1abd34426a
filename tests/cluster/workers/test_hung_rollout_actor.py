"""A hung rollout actor costs the run no group: with Ray, without an engine."""

import asyncio
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray import cloudpickle

from actors.rollout_setup import RolloutSetup
from actors.scripts import Script
from actors.trajectory import GroupOrder
from cluster.config.run_config import RunConfig
from cluster.driver.algorithm_config import create_rollouts
from cluster.workers import play_orders
from cluster.workers.engine_pool import no_engines
from cluster.workers.play_orders import OrderPlayer
from cluster.workers.rollout_pool import Assignment, RolloutPool
from cluster.workers.supervisor import Supervisor
from learners.advantages.group_advantages import credit_group
from learners.buffer.buffer import BufferSizes
from learners.buffer.buffer_actor import BufferActor
from rewards.reward_functions import RewardContext
from rewards.scorer import with_rewards
from simulators.gyms import GYMS
from simulators.task import TaskSource
from simulators.user import User, UserCall, UserReply
from simulators.users.rule_user import RuleUser
from tests.fakes import make_key
from tests.learners.learner_groups import write_policy

pytestmark = pytest.mark.slow
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file
EXPERT: Script = "expert"
GROUP_TIMEOUT_S = 4.0
WAIT_S = 90.0


class SlowUser:
    """Answers by the rules, after half a second."""

    async def reply(self, call: UserCall) -> UserReply:
        await asyncio.sleep(0.5)
        return RuleUser().reply_sync(call)


def connect_user(name: str | None) -> User:
    return SlowUser()


async def score(table: pa.Table, is_trained: bool) -> pa.Table:
    return with_rewards(table, {"environment": 1.0}, RewardContext())


def start_rollouts(policy_folder: str, **rollout: float) -> tuple[RolloutPool, OrderPlayer]:
    """Rollout actors that play experts, without an engine; `rollout` are settings of the recipe."""
    config = RunConfig.model_validate({"rollout": {"dialogues_per_actor": 8, "group_size": 2, **rollout}})
    setup = RolloutSetup(
        config=config.rollout,
        policy_folder=policy_folder,
        max_tokens=100_000,
        engine_capacity=math.inf,
        connect_engine=lambda: None,  # type: ignore[arg-type,return-value]
        open_gyms=lambda: GYMS,
        personas="plain",
        connect_user=connect_user,
        score=score,
        credit=partial(credit_group, credit_of=config.learner.credit_of, has_gains=True),  # never flat
    )
    engines = no_engines()
    rollouts = create_rollouts(config, setup, engines=engines)
    return rollouts, OrderPlayer(rollouts, Supervisor(rollouts, engines, deliver_weights=lambda: None))


@pytest.fixture(scope="module")
def started(small_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[RolloutPool, OrderPlayer]:
    policy_folder = write_policy(tmp_path_factory.mktemp("policy"))
    return start_rollouts(str(policy_folder), num_actors=2, group_timeout_s=GROUP_TIMEOUT_S)


@pytest.fixture
def rollouts(started: tuple[RolloutPool, OrderPlayer]) -> RolloutPool:
    return started[0]


@pytest.fixture
def player(started: tuple[RolloutPool, OrderPlayer]) -> OrderPlayer:
    return started[1]


def get(reference: Any) -> Any:
    """`ray.get`, which types what it gives as a list, with a time limit."""
    return ray.get(reference, timeout=WAIT_S)


@contextmanager
def stopped(rollouts: RolloutPool, index: int) -> Iterator[Callable[[], None]]:
    """Yields a function that stops an actor's process. If it still exists at the end, it continues."""
    pids: list[int] = []

    def stop() -> None:
        found, deadline = dict[int, int](), time.monotonic() + WAIT_S
        while index not in found:  # the test before may have ended it
            assert time.monotonic() < deadline
            rollouts.poll(None)
            states = rollouts._env_runners.foreach_env_runner(
                lambda actor: (actor.worker_index, os.getpid()), local_env_runner=False
            )
            found = dict(states)
        pids.append(found[index])
        os.kill(pids[0], signal.SIGSTOP)

    try:
        yield stop
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def held_by_the_stopped(said: str) -> list[float]:
    """Seconds for which actor 1 held the groups that were reassigned."""
    return [float(held_s) for held_s in re.findall(r"reassigned .* held ([\d.]+) s by rollout-1-", said)]


@pytest.mark.soak
def test_an_evaluation_continues_without_a_hung_actor(
    rollouts: RolloutPool, player: OrderPlayer, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = [
        GroupOrder(group_id=i, task_key=make_key("function", index=i), group_size=2, seed=0)
        for i in range(24)
    ]
    finished: list[int] = []
    with stopped(rollouts, 1) as stop:

        def finish(tables: Sequence[pa.Table]) -> None:
            if not finished:
                stop()
            finished.extend(table["group_id"][0].as_py() for table in tables)

        _, groups = player.run(orders, policy=EXPERT, finish=finish)
    assert [group.order for group in groups] == orders
    assert sorted(finished) == list(range(24))
    held_s = held_by_the_stopped(capsys.readouterr().err)
    assert held_s and GROUP_TIMEOUT_S <= max(held_s) < GROUP_TIMEOUT_S + 10


def test_training_continues_without_a_hung_actor_until_ray_has_restarted_it(
    rollouts: RolloutPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = BufferSizes(group_size=2, groups_per_step=4, max_off_policy_steps=1, seed=0, extra_dialogues=1)
    feed: Any = ray.remote(BufferActor).options(num_cpus=0, max_concurrency=256)
    feed = feed.remote(
        sizes,
        source=TaskSource({"function": 1.0}, split="train", seed=0, difficulty=0),
        run_folder=tmp_path,
        group_timeout_s=GROUP_TIMEOUT_S,
    )

    def train(num_steps: int, *, until: Callable[[], bool] = lambda: True) -> None:
        """Scripts speak as version 0, so that the version stands still here."""
        deadline = time.monotonic() + WAIT_S
        while num_steps > 0 or not until():
            assert time.monotonic() < deadline
            taking = feed.take.remote(4, 0, timeout_s=WAIT_S)
            rollouts.poll(Assignment(source=feed, policy=EXPERT, group_size=3))
            ids = [group.order.group_id for group in get(taking)]
            get(feed.mark_trained.remote(ids, 1))
            get(feed.release.remote(ids, 0))
            assert get(feed.ledger.remote()).closes()
            num_steps -= 1

    def metrics() -> dict[str, float]:
        return get(feed.metrics.remote())

    with stopped(rollouts, 1) as stop:
        train(2, until=lambda: 1 in rollouts._workers[feed])  # from then on it has groups, or asks for some
        worker = rollouts._workers[feed][1]
        stop()
        train(2, until=lambda: metrics()["buffer/reissued"] > 0)
    train(2, until=lambda: rollouts._workers[feed].get(1, worker) != worker)
    ledger = get(feed.ledger.remote())
    assert ledger.trained >= 6 * 4 * 2 and ledger.dropped["surplus"] >= 6 * 4
    held_s = held_by_the_stopped(capsys.readouterr().err)
    assert held_s and max(held_s) < GROUP_TIMEOUT_S + 10
    ray.kill(feed)


@pytest.mark.soak
def test_an_actor_that_hung_before_an_evaluation_began_is_restarted(
    rollouts: RolloutPool, player: OrderPlayer, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has none of the evaluation's groups, and may be the only actor."""
    order = GroupOrder(group_id=0, task_key=make_key("function"), group_size=2, seed=0)
    with stopped(rollouts, 1) as stop:
        stop()
        player.run([order], policy=EXPERT, finish=lambda tables: None)
    assert re.search(r"rollout actor 1 \(pid \d+ on \S+\) has not answered for", capsys.readouterr().err)


@pytest.mark.soak
def test_an_actor_that_hangs_during_demonstrations_is_restarted_and_they_are_retried(
    rollouts: RolloutPool,
    player: OrderPlayer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(play_orders, "UNRESPONSIVE_S", 15.0)
    orders = [
        GroupOrder(group_id=i, task_key=make_key("function", index=i), group_size=1, seed=0) for i in range(3)
    ]
    began = time.monotonic()
    with stopped(rollouts, 1) as stop:
        stop()
        tables = [table for _, table in player.sample({"all": orders}, policy=EXPERT)]
    assert time.monotonic() - began < WAIT_S
    ids = [group_id for table in tables for group_id in get(table)["group_id"].to_pylist()]
    assert list(dict.fromkeys(ids)) == list(range(3))
    assert re.search(r"rollout actor 1 .* returned no demonstrations", capsys.readouterr().err)


def test_demonstrations_outlive_the_actors_that_played_them(
    rollouts: RolloutPool, player: OrderPlayer
) -> None:
    """A new learner needs them again."""
    orders = [
        GroupOrder(group_id=i, task_key=make_key("function", index=i), group_size=1, seed=0) for i in range(6)
    ]
    tables = [table for _, table in player.sample({"all": orders}, policy=EXPERT)]
    pids = rollouts._env_runners.foreach_env_runner(lambda actor: os.getpid(), local_env_runner=False)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.0)  # Ray notices after a moment that an object's owner is gone
    ids = [group_id for table in tables for group_id in get(table)["group_id"].to_pylist()]
    assert list(dict.fromkeys(ids)) == list(range(6))
