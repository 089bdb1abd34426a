"""Placement: the resources of each kind of process place it on the nodes of the recipe."""

import socket

import pytest
from ray._private import ray_constants, services

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.driver.algorithm import GRPOConfig
from cluster.preflight import checks
from cluster.preflight.checks import check_resources
from cluster.preflight.dry_run import make_plan
from cluster.ray_cluster.placement import NODE_SHARE, Machine, gpu_share, planned_processes
from cluster.ray_cluster.start import on_loopback, reachable
from cluster.workers.learner_restart import _needed

APART = {"engine": "engine-nodes", "learner": "learner-nodes", "rollout": "spot"}


def run(nodes: dict[str, str], **sections: object) -> RunConfig:
    return RunConfig.model_validate({"ray": {"nodes": nodes}, **sections})


def test_each_process_takes_a_little_of_its_nodes_resource_and_the_driver_none() -> None:
    processes = planned_processes(run(APART), gpu_share=1.0)
    taken = {process.name: dict(process.resources) for process in processes}
    assert taken == {
        "driver": {},
        "simulator": {},
        "rollout actor": {"spot": NODE_SHARE},
        "engine": {"engine-nodes": NODE_SHARE},
        "learner": {"learner-nodes": NODE_SHARE},
    }


def test_rllib_and_tune_reserve_the_same() -> None:
    config = GRPOConfig(run=run(APART))
    assert config.custom_resources_per_env_runner == {"spot": NODE_SHARE}
    assert config.custom_resources_per_learner == {"learner-nodes": NODE_SHARE}
    later = GRPOConfig().learners(ray={"nodes": {"rollout": "cpu"}})
    assert later.custom_resources_per_env_runner == {"cpu": NODE_SHARE}
    assert later.custom_resources_per_learner == {}


def test_new_learners_wait_for_their_nodes_too() -> None:
    config = GRPOConfig(run=run(APART, learner={"num_learners": 2}))
    assert _needed(config) == {"CPU": 0.5, "learner-nodes": 2 * NODE_SHARE}


def test_separate_nodes_share_no_gpu_however_few_there_are() -> None:
    gpus = {"learner": {"num_gpus_per_learner": 1}}
    config = run({"engine": "a", "learner": "b"}, **gpus)
    assert gpu_share(config, num_gpus=0) == 1.0
    together = run({"engine": "a", "learner": "a"}, **gpus)
    assert gpu_share(together, num_gpus=0) == 0.5
    assert gpu_share(together, num_gpus=2) == 1.0


def test_separate_nodes_need_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "this_machine", lambda: Machine(num_cpus=4, num_gpus=1))
    monkeypatch.setattr(checks, "has_cuda", lambda: True)
    monkeypatch.setattr(checks, "num_gpu_users", lambda config: 2)
    config = run(APART, engine={"gpu_memory_utilization": 0.4}, learner={"num_gpus_per_learner": 1})
    with pytest.raises(BadInput, match="learners and engines need 2 GPUs and this machine has 1"):
        check_resources(config)


def test_a_local_ray_offers_every_resource() -> None:
    assert run(APART).ray.nodes.offered == {"engine-nodes": 1.0, "learner-nodes": 1.0, "spot": 1.0}
    assert RunConfig().ray.nodes.offered == {}


def test_the_plan_shows_the_nodes_of_each_process() -> None:
    assert (
        "nodes: engine on engine-nodes, learner on learner-nodes, rollout on spot"
        in make_plan(run(APART)).notes
    )
    assert not [note for note in make_plan(RunConfig()).notes if note.startswith("nodes:")]


@pytest.mark.parametrize("name", ["GPU", "memory", "", "a b", "1a"])
def test_a_node_name_must_be_a_custom_resource(name: str) -> None:
    with pytest.raises(ValueError, match="nodes are named by a custom Ray resource"):
        run({"engine": name})


@pytest.mark.parametrize(("listens_at", "is_joined_there"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_cluster_that_listens_only_on_loopback_can_be_joined(
    listens_at: str, is_joined_there: bool
) -> None:
    outer = services.get_node_ip_address()
    with socket.socket() as head:
        head.bind((listens_at, 0))
        head.listen()
        with reachable(f"127.0.0.1:{head.getsockname()[1]}"):
            assert (services.get_node_ip_address() == "127.0.0.1") is (
                is_joined_there or outer == "127.0.0.1"
            )
    with reachable("head:6379"):
        assert services.get_node_ip_address() == outer


def test_on_loopback_affects_only_a_ray_started_inside_it() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER
    with on_loopback():
        assert services.get_node_ip_address() == "127.0.0.1"
        assert services.resolve_ip_for_localhost("localhost") == "127.0.0.1"
    assert before == ray_constants.ENABLE_RAY_CLUSTER
