"""Rollout actors on nodes that join, leave and die: Ray with several nodes on this machine, without an
engine."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from actors.trajectory import GroupOrder
from cluster.ray_cluster.start import reachable
from cluster.workers.play_orders import OrderPlayer
from cluster.workers.rollout_pool import RolloutPool
from tests.cluster.workers.test_hung_rollout_actor import start_rollouts
from tests.fakes import make_key
from tests.learners.learner_groups import write_policy

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(300)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file
cloudpickle.register_pickle_by_value(sys.modules["tests.cluster.workers.test_hung_rollout_actor"])
WAIT_S = 90.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that holds the driver and the feed, and no rollout actor."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.1"})
    with reachable(str(cluster.address)):
        ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def start_one(policy_folder: str) -> tuple[RolloutPool, OrderPlayer]:
    """One actor; each takes a whole CPU."""
    return start_rollouts(policy_folder, num_actors=1, cpus_per_actor=1.0, group_timeout_s=30.0)


def orders(num: int) -> list[GroupOrder]:
    return [
        GroupOrder(group_id=i, task_key=make_key("function", index=i), group_size=2, seed=0)
        for i in range(num)
    ]


def test_actors_join_with_their_nodes_die_with_them_and_leave_and_no_group_is_lost(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    rollouts, player = start_one(str(write_policy(tmp_path / "policy")))
    later: list[Any] = []
    finished: list[int] = []

    def run(num: int, *, meanwhile: Callable[[], None], until: Callable[[], bool]) -> None:
        """Plays lists of orders until `until` is true; calls `meanwhile` at the first results."""
        deadline, is_done = time.monotonic() + WAIT_S, False
        while not is_done or not until():
            assert time.monotonic() < deadline
            finished.clear()

            def finish(tables: Sequence[pa.Table]) -> None:
                nonlocal is_done
                finished.extend(table["group_id"][0].as_py() for table in tables)
                if not is_done:
                    is_done = True
                    meanwhile()

            _, groups = player.run(orders(num), policy="expert", finish=finish)
            assert [group.order for group in groups] == orders(num)
            assert sorted(finished) == list(range(num))

    def grow() -> None:
        rollouts.scale(2)
        rollouts.membership.admit()
        assert rollouts.membership.num_active == 1, "there is no room for it yet"
        later.append(cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1"))

    run(12, meanwhile=grow, until=lambda: rollouts.membership.num_active == 2)
    # So many that the dead one still has some of them.
    run(48, meanwhile=lambda: cluster.remove_node(later[0], allow_graceful=False), until=lambda: True)
    assert "has died: its groups are reassigned" in capsys.readouterr().err
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    run(12, meanwhile=lambda: rollouts.scale(1), until=lambda: rollouts.membership.is_stable)
    assert list(rollouts.membership.actors) == [1]
