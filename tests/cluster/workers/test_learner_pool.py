"""Learners that die are replaced, and the weights come out the same: real processes, a tiny policy."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from ray.exceptions import RayActorError
from safetensors.torch import load

from cluster.driver.checkpoints import LEARNER_FOLDER, Checkpoints, DriverState
from cluster.run_folder.paths import RunFolder
from cluster.workers.learner_pool import LearnerPool
from learners.model.checkpoint import is_checkpoint
from learners.model.safetensors_storage import CheckpointFolderWriter
from learners.sft_config import SftConfig
from tests.learners.learner_groups import LearnerOnlyConfig, group_config, start, stored, write_policy
from tests.learners.tiny_parts import plain_model, random_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("small_ray")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file

NUM_LEARNERS = 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LearnerOnlyConfig:
    folder = write_policy(tmp_path_factory.mktemp("policy"))
    return group_config(folder, num_learners=NUM_LEARNERS, sft=SftConfig(batch_size=4))


class Run:
    """A small driver: demonstrations, two SFT steps, then GRPO steps on groups of their own."""

    def __init__(self, config: LearnerOnlyConfig, **settings: Any):
        group = start(config)
        self.groups = [group]
        self.learners = LearnerPool(group, max_steps=8, on_rebuild=self.groups.append, **settings)
        self.step = 0

    def sft(self) -> None:
        assert self.learners.set_demonstrations([ray.put(random_table(group_id=9, seed=1))]) == 4
        self.learners.sft_updates(first_step=0, num_steps=2)

    def grpo(self) -> dict[str, float]:
        tables = [stored(random_table(group_id=10 * self.step + i, version=self.step)) for i in range(2)]
        metrics, _ = self.learners.update(tables, step=self.step)
        self.step += 1
        clocks = ("time/", "learner/tokens_per_s")
        return {name: value for name, value in metrics.items() if not name.startswith(clocks)}

    def weights(self) -> dict[str, torch.Tensor]:
        payload, _ = self.learners.weights(dtype="float32")
        return load(bytes(ray.get(payload)))

    def on(self, rank: int, work: Callable[[Any], Any]) -> ray.ObjectRef:
        actors: Any = self.groups[-1]._workers
        return actors[rank].apply.remote(work)

    def signal(self, rank: int, number: int = signal.SIGKILL) -> Callable[[], None]:
        """Sends that learner's process a signal when called."""
        pid = ray.get(self.on(rank, lambda learner: os.getpid()), timeout=30)
        return lambda: os.kill(pid, number)

    def is_alive(self, rank: int) -> bool:
        try:
            return ray.get(self.on(rank, lambda learner: True), timeout=30)
        except RayActorError:
            return False


@pytest.fixture(scope="module")
def undisturbed(config: LearnerOnlyConfig) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Metrics of four GRPO steps, and the weights after them."""
    run = Run(config)
    run.sft()
    result = [run.grpo() for _ in range(4)], run.weights()
    assert run.learners.num_rebuilds == 0
    run.groups[-1].shutdown()
    return result


def assert_same(run: Run, metrics: list[dict[str, float]], undisturbed: Any) -> None:
    for step, (mine, theirs) in enumerate(zip(metrics, undisturbed[0], strict=True)):
        assert mine.keys() == theirs.keys()
        different = {
            name: (value, theirs[name])
            for name, value in mine.items()
            if value != pytest.approx(theirs[name], rel=1e-5, abs=1e-6)
        }
        assert not different, f"step {step}"
    weights = run.weights()
    for name, tensor in undisturbed[1].items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def begin(checkpoints: Checkpoints, run: Run) -> None:
    state = DriverState(
        policy_version=run.step,
        num_sft_steps=2,
        cold_started=True,
        iteration=run.step,
        buffer={"journal": {"first": 0}},
    )
    checkpoints.begin(state)


def write_with(trouble: Callable[[], None]) -> Callable[[Any], None]:
    """Makes a learner call `trouble` whenever it writes its shards."""

    def work(learner: Any) -> None:
        write = CheckpointFolderWriter.write_data

        def write_data(self: Any, *args: Any) -> Any:
            trouble()
            return write(self, *args)

        setattr(CheckpointFolderWriter, "write_data", write_data)  # noqa: B010 - pyright forbids the plain way

    return work


def test_learners_killed_between_steps_and_during_one_end_with_the_same_weights(
    config: LearnerOnlyConfig, undisturbed: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(config)
    checkpoints = Checkpoints(RunFolder(tmp_path), recipe="", keep=2, learners=run.learners)
    run.sft()
    metrics = [run.grpo()]
    run.signal(1)()  # between steps, without any checkpoint: from the untrained policy on
    metrics.append(run.grpo())
    assert run.learners.num_rebuilds == 1

    begin(checkpoints, run)
    checkpoints.complete(wait=True)
    assert run.learners.num_steps_to_replay == 0
    metrics.append(run.grpo())
    kill = run.signal(0)
    run.on(1, lambda learner: time.sleep(2.0))
    Timer(1.0, kill).start()  # within the step: rank 0 waits for rank 1, which has not begun it
    metrics.append(run.grpo())
    assert run.learners.num_rebuilds == 2
    assert_same(run, metrics, undisturbed)
    said = capfd.readouterr().err
    assert "learner 1 died: new learners are started" in said
    assert "resumed from step-00002, 1 steps repeated" in said
    run.groups[-1].shutdown()


def test_a_checkpoint_holds_the_weights_of_its_moment_and_a_failed_one_leaves_the_one_before(
    config: LearnerOnlyConfig, undisturbed: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, folder = Run(config), RunFolder(tmp_path)
    checkpoints = Checkpoints(folder, recipe="", keep=2, learners=run.learners)
    run.sft()
    metrics = [run.grpo(), run.grpo()]
    ray.get([run.on(rank, write_with(lambda: time.sleep(2.0))) for rank in range(NUM_LEARNERS)])
    begin(checkpoints, run)
    checkpoints.complete(wait=False)
    assert folder.latest_step is None, "training continues while it is written"
    metrics.append(run.grpo())
    checkpoints.complete(wait=True)
    assert is_checkpoint(folder.checkpoint(2) / LEARNER_FOLDER)
    assert run.learners.num_steps_to_replay == 1
    metrics.append(run.grpo())

    begin(checkpoints, run)
    run.signal(1)()  # while it is written
    checkpoints.complete(wait=True)
    assert (folder.latest_step, checkpoints.num_failed) == (2, 1)
    assert_same(run, metrics, undisturbed)  # of new learners, from the checkpoint that was slow to be written
    assert run.learners.num_rebuilds == 1

    ray.get(run.on(1, write_with(full_disk)))
    begin(checkpoints, run)
    checkpoints.complete(wait=True)
    assert (folder.latest_step, checkpoints.num_failed) == (2, 2)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00002"]
    said = capfd.readouterr().err
    assert "learner 1 died, while it was written; the one of step 2 stays, training continues" in said
    assert "step 4 was not written: learner 1: [Errno 28] No space left on device" in said

    assert all(run.is_alive(rank) for rank in range(NUM_LEARNERS))
    run.learners.export_checkpoint(folder.checkpoint(2) / LEARNER_FOLDER, tmp_path / "model")
    model = plain_model(str(tmp_path / "model"))
    assert_same(run, metrics, undisturbed)  # what was exported is not what trains on
    assert run.learners.num_rebuilds == 1
    name, tensor = next(iter(undisturbed[1].items()))
    assert not torch.allclose(model.get_parameter(name), tensor, atol=1e-6)
    run.groups[-1].shutdown()
