"""Learners that die, hang, fail or find no free resources: how the driver reacts. Their processes are real,
their work is a counter."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from numpy.typing import NDArray
from ray import cloudpickle
from ray.exceptions import ObjectLostError, RayActorError

from cluster.workers.learner_pool import MAX_REBUILDS, LearnerPool
from cluster.workers.learner_rpc import LearnerError
from learners.buffer.group_store import GroupRows
from learners.model.checkpoint import SaveReport

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("small_ray")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file

NUM_LEARNERS = 2
NUM_BYTES = 2**21


class LightLearner:
    """Counts its steps; nothing heavy is loaded."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.num_steps = 0

    def apply(self, work: Callable[[Any], Any]) -> Any:
        return work(self)

    def update_groups(self, groups: Sequence[GroupRows], *, step: int) -> dict[str, float]:
        ray.get([group.ref for group in groups])
        self.num_steps += 1
        return {"num_steps": float(self.num_steps)}

    def credits(self) -> pa.Table | None:
        """Of the last step; more than Ray puts into an answer."""
        turns = np.arange(NUM_BYTES // 8)
        return pa.table({"step": np.full_like(turns, self.num_steps)}) if self.rank == 0 else None

    def weights(self, *, dtype: str) -> tuple[NDArray[np.uint8], dict[str, float]] | None:
        """More bytes than Ray puts into an answer: they stay in the object store."""
        return (np.ones(NUM_BYTES, np.uint8), {"seconds": 0.5}) if self.rank == 0 else None

    def save(self, path: str) -> None: ...

    def saved(self, *, wait: bool) -> SaveReport:
        return SaveReport(done=True)


def light_learner(rank: int = 0) -> Any:
    create: Any = ray.remote(LightLearner)
    return create.options(num_cpus=0).remote(rank)


class LightGroup:
    """What `LearnerPool` knows of a LearnerGroup."""

    def __init__(self, *, num_cpus: float = 0) -> None:
        self.config = SimpleNamespace(
            num_learners=NUM_LEARNERS,
            num_cpus_per_learner=num_cpus,
            num_gpus_per_learner=0,
            custom_resources_per_learner=None,
        )
        self._workers: list[Any] = [light_learner(rank) for rank in range(NUM_LEARNERS)]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {}

    def shutdown(self) -> None:
        for actor in self._workers:
            ray.kill(actor)


def kill(learner: Any) -> None:
    """Returns once it is dead; `ray.kill` does not wait for that."""
    ray.kill(learner)
    with pytest.raises(RayActorError):
        while True:
            ray.get(learner.apply.remote(lambda _: time.sleep(0.05)), timeout=30)


def wait_until_lost(table: ray.ObjectRef) -> None:
    """Ray notices with a delay that an object's owner is dead."""
    with pytest.raises(ObjectLostError):
        while True:
            ray.get(table, timeout=30)
            time.sleep(0.1)


def test_a_hung_learner_is_replaced() -> None:
    groups = [LightGroup()]
    learners = LearnerPool(groups[0], max_steps=8, on_rebuild=groups.append, timeout_s=20.0)
    learners.update([], step=0)
    pid: Any = ray.get(groups[0]._workers[1].apply.remote(lambda learner: os.getpid()), timeout=30)
    os.kill(pid, signal.SIGSTOP)
    assert learners.update([], step=1)[0] == {"num_steps": 2.0}
    assert learners.num_rebuilds == 1
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the hung process is killed, which frees its memory"
        time.sleep(0.1)


def test_polling_a_checkpoint_does_not_wait_for_a_busy_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rank that waits in a collective for one that has failed."""
    monkeypatch.setattr("cluster.workers.learner_pool.POLL_TIMEOUT_S", 1.0)
    learners = LearnerPool(LightGroup(), max_steps=8)
    learners.save(tmp_path)
    learners._actors()[1].apply.remote(lambda learner: time.sleep(10.0))
    start = time.monotonic()
    assert not learners.saved(wait=False)
    assert time.monotonic() - start < 5
    assert learners.saved(wait=True)
    learners.update([], step=0)
    assert learners.num_rebuilds == 0, "a busy learner is not replaced"


@pytest.mark.soak
def test_new_learners_without_free_resources_end_the_run_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.workers.learner_restart.RESOURCE_TIMEOUT_S", 1.0)
    learners = LearnerPool(LightGroup(num_cpus=50), max_steps=8)
    kill(learners._actors()[0])
    says = (
        r"^learner 0 died: new learners need 100 CPU, and for 1 s the cluster has had 3 CPU free: bring back "
        r"lost nodes or lower learner\.num_learners, and resume from the last checkpoint with .*$"
    )
    with pytest.raises(LearnerError, match=says):
        learners.update([], step=0)


class SlowGroup(LightGroup):
    """The second instance never finishes its constructor."""

    num_groups = 0

    def __init__(self) -> None:
        super().__init__()
        SlowGroup.num_groups += 1
        if SlowGroup.num_groups > 1:
            time.sleep(60)


@pytest.mark.soak
def test_new_learners_that_do_not_start_end_the_run() -> None:
    learners = LearnerPool(SlowGroup(), max_steps=8, timeout_s=5.0)
    kill(learners._actors()[0])
    start = time.monotonic()
    with pytest.raises(
        LearnerError, match=r"^learner 0 died: .* need nothing, did not start within 5 s: resume"
    ):
        learners.update([], step=0)
    assert time.monotonic() - start < 30


def test_weights_outlive_the_learners_that_packed_them() -> None:
    """Engines fetch them while the learners train on: a learner that dies then is replaced, and nothing else
    is."""
    groups = [LightGroup()]
    learners = LearnerPool(groups[0], max_steps=8, on_rebuild=groups.append)
    payload, cost = learners.weights(dtype="float32")
    for actor in groups[0]._workers:
        kill(actor)
    time.sleep(1.0)  # Ray notices after a moment that an object's owner is gone
    assert int(ray.get(payload, timeout=30).sum()) == NUM_BYTES
    assert cost == {"seconds": 0.5}
    again, _ = learners.weights(dtype="float32")
    assert int(ray.get(again, timeout=30).sum()) == NUM_BYTES
    assert learners.num_rebuilds == 1


@pytest.mark.soak
def test_a_steps_credits_outlive_the_learners() -> None:
    """They are written in parallel with later steps: no learner has to live until then."""
    groups = [LightGroup()]
    learners = LearnerPool(groups[0], max_steps=8, on_rebuild=groups.append)
    first = learners.update([], step=0)[1]
    for actor in groups[0]._workers:
        kill(actor)
    time.sleep(1.0)  # Ray notices after a moment that an object's owner is gone
    second = learners.update([], step=1)[1]
    assert learners.num_rebuilds == 1
    for number, credits in enumerate((first, second), start=1):
        steps: Any = ray.get(credits, timeout=30)["step"]
        assert (len(steps), set(steps.to_pylist())) == (NUM_BYTES // 8, {number})


def test_a_learners_own_error_is_raised_at_once_in_one_line() -> None:
    learners = LearnerPool(LightGroup(), max_steps=8)

    def only_on_rank_0(learner: Any) -> None:
        if ray.get_runtime_context().get_actor_id() == first:
            raise ValueError("a sample\ntoo long")
        time.sleep(60)  # a collective that the other never joins

    first = learners._actors()[0]._actor_id.hex()
    start = time.monotonic()
    with pytest.raises(LearnerError, match=r"^learner 0 failed: ValueError: a sample too long$"):
        learners._call(only_on_rank_0)
    assert time.monotonic() - start < 30
    assert learners.num_rebuilds == 0


@pytest.mark.soak
def test_learners_that_keep_dying_end_the_run() -> None:
    learners = LearnerPool(LightGroup(), max_steps=8)
    with pytest.raises(LearnerError, match=f"died, and so did {MAX_REBUILDS} replacements in a row"):
        learners._call(lambda learner: os._exit(1))
    assert learners.num_rebuilds == MAX_REBUILDS


@pytest.mark.soak
def test_a_step_that_cannot_be_replayed_ends_the_run_with_how_to_resume() -> None:
    def owned_by(owner: Any) -> ray.ObjectRef:
        return ray.get(owner.apply.remote(lambda _: [ray.put(b"table" * 2**18)]))[0]

    owner = light_learner()
    table = owned_by(owner)
    groups = [LightGroup()]
    learners = LearnerPool(groups[0], max_steps=1, on_rebuild=groups.append)
    learners.update([GroupRows(ref=table, first_row=0, num_rows=1)], step=0)
    kill(owner)
    wait_until_lost(table)
    kill(groups[-1]._workers[1])
    with pytest.raises(
        LearnerError, match=r"lost with the process that held it.*resume from the last checkpoint"
    ):
        learners.update([], step=1)

    learners = LearnerPool(LightGroup(), max_steps=1, on_rebuild=groups.append)
    learners.update([], step=0)
    learners.update([], step=1)
    kill(learners._actors()[0])
    with pytest.raises(
        LearnerError, match=r"learner 0 died: more than 1 steps since the last complete checkpoint"
    ):
        learners.update([], step=2)
