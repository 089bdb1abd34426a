"""GRPO on its real parts: Ray, Serve, vLLM, RLlib's groups, Arrow. A small policy, a few steps."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray import tune
from transformers import AutoModelForCausalLM

from cluster.driver.algorithm import GRPO, GRPOConfig
from cluster.tracking.wandb.internals import read_part
from learners.advantages.group_advantages import gym_advantages

pytestmark = pytest.mark.slow

GAP = 0.02


def tiny_config(folder: Path, *, name: str, max_off_policy_steps: int = 0) -> GRPOConfig:
    """A run of seconds. Turns are rewarded and missing tool calls punished: even a bad policy has groups to
    train."""
    return (
        GRPOConfig()
        .environment(
            run={"name": name, "folder": str(folder)},
            gyms={"weights": {"telepathy": 1.0, "travel": 1.0}},
            reward={"weights": {"environment": 1.0, "turn": 0.05, "no_tool_call": -0.5}},
        )
        .env_runners(
            num_env_runners=1,
            rollout={"group_size": 4, "dialogues_per_actor": 32, "max_completion_tokens": 24},
            engine={"max_model_len": 768, "max_num_seqs": 32},
        )
        .learners(
            num_learners=1,
            policy={"tiny": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 128}},
        )
        .training(
            lr=1e-3,
            sft={"num_demonstrations": 320, "num_epochs": 2.0, "lr": 4e-3},
            grpo={"num_steps": 3},
            buffer={"groups_per_step": 4, "max_off_policy_steps": max_off_policy_steps},
            evaluation={"tasks_per_gym": 4},
        )
    )


def assert_promises_hold(metrics: dict[str, float], *, most_age: int) -> None:
    dropped = sum(value for key, value in metrics.items() if key.startswith("ledger/dropped/"))
    assert metrics["ledger/issued"] == metrics["ledger/trained"] + dropped + metrics["ledger/in_flight"]
    assert metrics["buffer/age/max"] <= most_age
    if most_age == 0:
        assert metrics["learner/logprob_gap/num_tokens"] > 0
        assert metrics["learner/logprob_gap/mean"] < GAP


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A synchronous run after two steps, with its checkpoint and its model at that moment."""
    folder = tmp_path_factory.mktemp("runs")
    algorithm = tiny_config(folder, name="sync").build_algo()
    assert isinstance(algorithm, GRPO)
    try:
        results = [algorithm.train() for _ in range(2)]
        rows = algorithm.evaluate_stage("test")
        checkpoint = algorithm.save_to_path(str(folder / "checkpoint"))
        model = algorithm.write_model()
        yield algorithm, results, rows, Path(checkpoint), model
    finally:
        algorithm.stop()


def test_a_step_trains_whole_groups_and_every_promise_holds(trained: Any) -> None:
    algorithm, results, _, _, _ = trained
    assert algorithm.policy_version == 2
    assert results[1]["training_iteration"] == 2
    assert_promises_hold(algorithm.step_metrics, most_age=0)
    assert algorithm.step_metrics["ledger/trained"] == 2 * 4 * 4
    assert results[1]["rollout/reward/mean"] == algorithm.step_metrics["rollout/reward/mean"]


def test_every_number_of_a_step_is_in_its_rows(trained: Any) -> None:
    algorithm, _, _, _, _ = trained
    rows = pq.read_table(algorithm.folder.trajectories / "step-00002.parquet")
    settled = rows.to_pandas()
    scores = settled.groupby(["group_id", "trajectory"]).env_reward.sum()
    assert scores.mean() == pytest.approx(algorithm.step_metrics["rollout/reward/mean"])
    assert sum(map(len, settled.completion_ids)) == algorithm.step_metrics["rollout/policy_tokens"]
    trained = settled[settled.outcome == "trained"]
    assert len(trained.groupby(["group_id", "trajectory"])) == 16
    assert {version for versions in trained.policy_versions for version in versions} == {1}


def test_the_learners_advantages_are_in_the_rows_that_it_trained_on(trained: Any) -> None:
    algorithm, _, _, _, _ = trained
    rows = pq.read_table(algorithm.folder.trajectories / "step-00002.parquet")
    num_trained = 0
    for group_id in rows["group_id"].unique().to_pylist():
        group = rows.filter(pc.field("group_id") == group_id)
        is_trained = np.array(group["outcome"].to_pylist()) == "trained"
        num_trained += int(is_trained.sum())
        for name in ("advantage", "credit"):
            known = [value is not None for value in group[name].to_pylist()]
            assert known == is_trained.tolist()
        if is_trained.any():
            expected = gym_advantages(group, algorithm.run.learner.credit_of).astype(np.float32)
            mine = group["advantage"].to_numpy()
            assert mine[is_trained].tolist() == expected[is_trained].tolist()
    assert num_trained > 0


def test_evaluation_is_a_rollout_without_a_learner(trained: Any) -> None:
    algorithm, _, rows, _, _ = trained
    assert [(row.gym, row.n) for row in rows] == [("telepathy", 4), ("travel", 4), ("average", 8)]
    assert pq.read_table(algorithm.folder.trajectories / "evaluation-test.parquet").num_rows >= 8
    assert algorithm.policy_version == 2


def test_a_killed_learner_is_replaced_and_agrees_with_the_engine(trained: Any) -> None:
    algorithm, _, _, _, _ = trained
    before = algorithm.step_metrics["ledger/trained"]
    (pid,) = [result.get() for result in algorithm.learner_group.foreach_learner(lambda _: os.getpid())]
    os.kill(pid, signal.SIGKILL)
    algorithm.train()
    assert algorithm.step_metrics["learner/rebuilds"] == 1
    assert algorithm.step_metrics["ledger/trained"] == before + 16
    assert_promises_hold(algorithm.step_metrics, most_age=0)


def test_a_killed_rollout_actor_is_replaced_and_nothing_is_lost(trained: Any) -> None:
    algorithm, _, _, _, _ = trained
    before = algorithm.step_metrics["ledger/trained"]
    (pid,) = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)
    os.kill(pid, signal.SIGKILL)
    algorithm.train()
    assert algorithm.step_metrics["ledger/trained"] == before + 16
    assert_promises_hold(algorithm.step_metrics, most_age=0)


def engine_processes(algorithm: GRPO) -> list[int]:
    """Process ids of the only engine: its actor, then vLLM's."""
    (replica,) = algorithm.parts.services.engines._replicas
    assert replica.process is not None
    return [pid for pid, _ in replica.process.processes]


def assert_replaced(killed: list[int], algorithm: GRPO) -> None:
    """All processes of the killed engine are ended, and another engine serves."""
    assert algorithm.parts.services.engines.num_lost >= 1
    assert not set(killed) & set(engine_processes(algorithm))
    for pid in killed:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_steps_continue_after_the_only_engines_core_was_killed(trained: Any) -> None:
    algorithm, _, _, _, _ = trained
    before, killed = algorithm.step_metrics["ledger/trained"], engine_processes(algorithm)
    os.kill(max(killed[1:]), signal.SIGKILL)
    algorithm.train()
    assert algorithm.step_metrics["ledger/trained"] == before + 16
    assert_promises_hold(algorithm.step_metrics, most_age=0)
    assert_replaced(killed, algorithm)


def test_a_checkpoint_resumes_with_the_same_weights_ledger_and_tasks(trained: Any) -> None:
    algorithm, _, _, checkpoint, model = trained
    algorithm.stop()
    restored = GRPO.from_checkpoint(checkpoint)
    try:
        assert (restored.policy_version, restored.num_sft_steps) == (2, algorithm.num_sft_steps)
        again = restored.parts.learners.weights(dtype="float32")[0]
        theirs = AutoModelForCausalLM.from_pretrained(model).state_dict()
        from safetensors.torch import load

        ours = load(bytes(ray.get(again)))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        restored.train()
        assert restored.step_metrics["ledger/trained"] == 3 * 4 * 4
        assert_promises_hold(restored.step_metrics, most_age=0)
    finally:
        restored.stop()


@pytest.mark.soak
def test_asynchronous_training_is_the_same_loop_with_a_larger_bound(tmp_path: Path) -> None:
    algorithm = tiny_config(tmp_path, name="async", max_off_policy_steps=1).build_algo()
    assert isinstance(algorithm, GRPO)
    try:
        metrics = []
        for _ in range(4):
            algorithm.train()
            assert_promises_hold(algorithm.step_metrics, most_age=1)
            metrics.append(algorithm.step_metrics)
        assert metrics[-1]["buffer/age/max"] == 1
        for name in ("learner/idle/share", "engine/idle/share", "engine/paused/share"):
            assert all(0 <= step[name] <= 1 for step in metrics), name
        assert all(step["engine/requests/mean"] > 0 for step in metrics)
        open_groups = {order["group_id"] for order in algorithm.parts.buffer.state()["open_orders"]}
    finally:
        algorithm.stop()
    trained_groups: list[int] = []
    for step, numbers in enumerate(metrics, start=1):
        rows = pq.read_table(algorithm.folder.trajectories / f"step-{step:05d}.parquet").to_pandas()
        scores = rows[~rows.failed].groupby(["group_id", "trajectory"]).env_reward.sum()
        assert scores.mean() == pytest.approx(numbers["rollout/reward/mean"])
        assert sum(map(len, rows.completion_ids)) == numbers["rollout/policy_tokens"]
        trained = rows[rows.outcome == "trained"]
        assert set(trained.step) == {step}
        oldest = min(min(versions) for versions in trained.policy_versions if len(versions))
        assert numbers["buffer/age/max"] >= step - 1 - oldest
        trained_groups += set(trained.group_id)
    assert len(trained_groups) == len(set(trained_groups)) == 4 * 4
    assert open_groups.isdisjoint(trained_groups), "what is trained is not generated again"


@pytest.mark.soak
def test_it_runs_as_a_tune_trainable(tmp_path: Path) -> None:
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        tuner = tune.Tuner(
            GRPO,
            param_space=tiny_config(tmp_path, name="tune"),  # pyright: ignore[reportArgumentType]
            run_config=tune.RunConfig(
                stop={"training_iteration": 1}, storage_path=str(tmp_path / "tune"), verbose=0
            ),
        )
        (result,) = tuner.fit()
        assert result.error is None
        assert result.metrics is not None
        assert result.metrics["ledger/trained"] == 16
        (run,) = tmp_path.glob("tune-*/metrics.jsonl")
        assert [json.loads(line)["step"] for line in run.read_text().splitlines()] == [1]
        (part,) = run.parent.glob("wandb/offline-run-*/*.wandb")
        (told,) = [record["run"] for record in read_part(part) if record["type"] == "run"]
        assert (told["display_name"], told["run_group"]) == (run.parent.name, "tune")
    finally:
        ray.shutdown()
