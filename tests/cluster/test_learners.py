"""Learners that die or hang are replaced, and the run cannot tell: real processes, a tiny policy."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from safetensors.torch import load
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from cluster.checkpoints import LEARNER_FOLDER, Checkpoints
from cluster.learner_calls import LearnerError
from cluster.learners import MOST_REBUILDS, Learners
from cluster.run_folder import RunFolder
from learners.checkpoint import SaveReport, is_checkpoint
from learners.config import LearnerConfig, LearnerSettings, TinyPolicyConfig
from learners.learner import GRPOLearner
from learners.sft_config import SftConfig
from learners.tiny_policy import build
from tests.learners.tiny import plain_model, random_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file

NUM_LEARNERS = 2


class LearnerOnlyConfig(AlgorithmConfig):
    """The least that a LearnerGroup of ours asks of an AlgorithmConfig."""

    learner_settings: LearnerSettings


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LearnerOnlyConfig:
    folder = tmp_path_factory.mktemp("policy")
    tiny = TinyPolicyConfig(hidden_size=32, num_layers=2, num_heads=1, intermediate_size=48, vocab_size=512)
    build(folder, tiny, max_tokens=128, seed=0)
    config = LearnerOnlyConfig(algo_class=None)
    config.learners(num_learners=NUM_LEARNERS, learner_class=GRPOLearner)
    config.learner_settings = LearnerSettings(
        policy_folder=str(folder),
        learner=LearnerConfig(num_learners=NUM_LEARNERS, num_threads=1, micro_batch_tokens=128),
        sft=SftConfig(batch_size=4),
        temperature=1.0,
        seed=0,
    )
    return config


class Run:
    """A driver in small: demonstrations, two SFT steps, then GRPO steps on groups of their own."""

    def __init__(self, config: LearnerOnlyConfig, **settings: Any):
        group = LearnerGroup(config=config, module_spec=RLModuleSpec(module_class=RLModule))
        self.groups = [group]
        self.learners = Learners(group, most_steps=8, replaced=self.groups.append, **settings)
        self.step = 0

    def sft(self) -> None:
        assert self.learners.set_demonstrations([ray.put(random_table(group_id=9, seed=1))]) == 4
        self.learners.sft_updates(first_step=0, num_steps=2)

    def grpo(self) -> dict[str, float]:
        tables = [ray.put(random_table(group_id=10 * self.step + i, version=self.step)) for i in range(2)]
        metrics = self.learners.update(tables, step=self.step)
        self.step += 1
        return {name: value for name, value in metrics.items() if "tokens_per_s" not in name}

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


def begin(checkpoints: Checkpoints, run: Run) -> None:
    checkpoints.begin(run.step, write=lambda path: run.learners.save(path / LEARNER_FOLDER))


def write_with(trouble: Callable[[], None]) -> Callable[[Any], None]:
    """Has a learner meet `trouble` whenever it writes its shards."""

    def work(learner: Any) -> None:
        write = FileSystemWriter.write_data

        def write_data(self: Any, *args: Any) -> Any:
            trouble()
            return write(self, *args)

        setattr(FileSystemWriter, "write_data", write_data)  # noqa: B010 - pyright forbids the plain way

    return work


def test_learners_killed_between_steps_and_in_one_go_on_with_the_same_weights(
    config: LearnerOnlyConfig, undisturbed: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(config)
    checkpoints = Checkpoints(RunFolder(tmp_path), keep=2, learners=run.learners)
    run.sft()
    metrics = [run.grpo()]
    run.signal(1)()  # between steps, without any checkpoint: from the untrained policy on
    metrics.append(run.grpo())
    assert run.learners.num_rebuilds == 1

    begin(checkpoints, run)
    checkpoints.settle(wait=True)
    assert run.learners.num_steps_to_replay == 0
    metrics.append(run.grpo())
    kill = run.signal(0)
    run.on(1, lambda learner: time.sleep(2.0))
    Timer(1.0, kill).start()  # within the step: rank 0 waits for rank 1, which has not begun it
    metrics.append(run.grpo())
    assert run.learners.num_rebuilds == 2
    assert_same(run, metrics, undisturbed)
    said = capfd.readouterr().err
    assert "learner 1 died: new ones are started" in said
    assert "went on from step-00002, 1 steps taken again" in said
    run.groups[-1].shutdown()


def test_a_checkpoint_is_of_its_moment_and_one_that_fails_leaves_the_one_before(
    config: LearnerOnlyConfig, undisturbed: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, folder = Run(config), RunFolder(tmp_path)
    checkpoints = Checkpoints(folder, keep=2, learners=run.learners)
    run.sft()
    metrics = [run.grpo(), run.grpo()]
    ray.get([run.on(rank, write_with(lambda: time.sleep(2.0))) for rank in range(NUM_LEARNERS)])
    begin(checkpoints, run)
    checkpoints.settle(wait=False)
    assert folder.latest_step is None, "training goes on while it is written"
    metrics.append(run.grpo())
    checkpoints.settle(wait=True)
    assert is_checkpoint(folder.checkpoint(2) / LEARNER_FOLDER)
    assert run.learners.num_steps_to_replay == 1
    metrics.append(run.grpo())

    begin(checkpoints, run)
    run.signal(1)()  # while it is written
    checkpoints.settle(wait=True)
    assert (folder.latest_step, checkpoints.num_failed) == (2, 1)
    assert_same(run, metrics, undisturbed)  # of new learners, from the checkpoint that was slow to be written
    assert run.learners.num_rebuilds == 1

    ray.get(run.on(1, write_with(full_disk)))
    begin(checkpoints, run)
    checkpoints.settle(wait=True)
    assert (folder.latest_step, checkpoints.num_failed) == (2, 2)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00002"]
    said = capfd.readouterr().err
    assert "learner 1 died, while it was written; the one of step 2 stays, training goes on" in said
    assert "step 4 was not written: learner 1: [Errno 28] No space left on device" in said

    assert all(run.is_alive(rank) for rank in range(NUM_LEARNERS))
    run.learners.export_checkpoint(folder.checkpoint(2) / LEARNER_FOLDER, tmp_path / "model")
    model = plain_model(str(tmp_path / "model"))
    assert_same(run, metrics, undisturbed)  # what was exported is not what trains on
    assert run.learners.num_rebuilds == 1
    name, tensor = next(iter(undisturbed[1].items()))
    assert not torch.allclose(model.get_parameter(name), tensor, atol=1e-6)
    run.groups[-1].shutdown()


class LightLearner:
    """Counts its steps; nothing heavy is loaded."""

    def __init__(self) -> None:
        self.num_steps = 0

    def apply(self, work: Callable[[Any], Any]) -> Any:
        return work(self)

    def update_groups(self, tables: Sequence[ray.ObjectRef], *, step: int) -> dict[str, float]:
        ray.get(list(tables))
        self.num_steps += 1
        return {"num_steps": float(self.num_steps)}

    def save(self, path: str) -> None: ...

    def saved(self, *, wait: bool) -> SaveReport:
        return SaveReport(done=True)


def light_learner() -> Any:
    create: Any = ray.remote(LightLearner)
    return create.options(num_cpus=0).remote()


class LightGroup:
    """What `Learners` knows of a LearnerGroup."""

    def __init__(self, *, num_cpus: float = 0) -> None:
        self.config = SimpleNamespace(
            num_learners=NUM_LEARNERS, num_cpus_per_learner=num_cpus, num_gpus_per_learner=0
        )
        self._workers: list[Any] = [light_learner() for _ in range(NUM_LEARNERS)]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {}

    def shutdown(self) -> None:
        for actor in self._workers:
            ray.kill(actor)


def test_a_learner_that_hangs_is_replaced() -> None:
    groups = [LightGroup()]
    learners = Learners(groups[0], most_steps=8, replaced=groups.append, timeout_s=20.0)
    learners.update([], step=0)
    pid: Any = ray.get(groups[0]._workers[1].apply.remote(lambda learner: os.getpid()), timeout=30)
    os.kill(pid, signal.SIGSTOP)
    assert learners.update([], step=1) == {"num_steps": 2.0}
    assert learners.num_rebuilds == 1
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the one that hung is gone, and its memory with it"
        time.sleep(0.1)


def test_who_is_too_busy_to_say_whether_a_checkpoint_is_whole_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rank that waits in a collective for one that has failed."""
    monkeypatch.setattr("cluster.learners.POLL_TIMEOUT_S", 1.0)
    learners = Learners(LightGroup(), most_steps=8)
    learners.save(tmp_path)
    learners._actors()[1].apply.remote(lambda learner: time.sleep(10.0))
    start = time.monotonic()
    assert not learners.saved(wait=False)
    assert time.monotonic() - start < 5
    assert learners.saved(wait=True)
    learners.update([], step=0)
    assert learners.num_rebuilds == 0, "nor is it replaced"


def test_new_learners_without_a_place_end_the_run_and_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.learner_room.ROOM_TIMEOUT_S", 1.0)
    learners = Learners(LightGroup(num_cpus=50), most_steps=8)
    ray.kill(learners._actors()[0])
    says = (
        r"^learner 0 died: new ones take 100 CPU, and for 1 s the cluster has had 3 CPU free: bring back "
        r"what is gone or give fewer learner\.num_learners, and go on from the last checkpoint with .*$"
    )
    with pytest.raises(LearnerError, match=says):
        learners.update([], step=0)


class SlowGroup(LightGroup):
    """The second of its kind never stands."""

    num_groups = 0

    def __init__(self) -> None:
        super().__init__()
        SlowGroup.num_groups += 1
        if SlowGroup.num_groups > 1:
            time.sleep(60)


def test_new_learners_that_do_not_start_end_the_run() -> None:
    learners = Learners(SlowGroup(), most_steps=8, timeout_s=5.0)
    ray.kill(learners._actors()[0])
    start = time.monotonic()
    with pytest.raises(
        LearnerError, match=r"^learner 0 died: .* take nothing, did not start within 5 s: go on"
    ):
        learners.update([], step=0)
    assert time.monotonic() - start < 30


def test_an_error_of_a_learner_itself_is_raised_at_once_in_one_line() -> None:
    learners = Learners(LightGroup(), most_steps=8)

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


def test_learners_that_die_again_and_again_end_the_run() -> None:
    learners = Learners(LightGroup(), most_steps=8)
    with pytest.raises(LearnerError, match=f"died, and so did {MOST_REBUILDS} times those in its place"):
        learners._call(lambda learner: os._exit(1))
    assert learners.num_rebuilds == MOST_REBUILDS


def test_what_cannot_be_taken_again_ends_the_run_and_says_how_it_goes_on() -> None:
    def owned_by(owner: Any) -> ray.ObjectRef:
        return ray.get(owner.apply.remote(lambda _: [ray.put(b"table" * 2**18)]))[0]

    owner = light_learner()
    groups = [LightGroup()]
    learners = Learners(groups[0], most_steps=1, replaced=groups.append)
    learners.update([owned_by(owner)], step=0)
    ray.kill(owner)
    ray.kill(groups[-1]._workers[1])
    with pytest.raises(
        LearnerError, match=r"lost with the process that held it.*go on from the last checkpoint"
    ):
        learners.update([], step=1)

    learners = Learners(LightGroup(), most_steps=1, replaced=groups.append)
    learners.update([], step=0)
    learners.update([], step=1)
    ray.kill(learners._actors()[0])
    with pytest.raises(
        LearnerError, match=r"learner 0 died: more than 1 steps since the last whole checkpoint"
    ):
        learners.update([], step=2)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
