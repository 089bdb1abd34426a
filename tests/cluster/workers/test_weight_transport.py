"""The choice of a weight transport, and the learner's calls to the engines."""

import pickle
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import ray
import torch
from pydantic import ValidationError
from ray import cloudpickle
from ray.actor import ActorHandle

from actors.engines.protocol import EngineError
from cluster.config.run_config import RunConfig
from cluster.workers.weight_transport import choose

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file

TIMEOUT_S = 60


@pytest.mark.parametrize(
    ("learners", "engines", "taken"),
    [
        ([[]], [[]], "shared_memory"),
        ([["a"]], [[]], "shared_memory"),
        ([["a"]], [["a"]], "ipc"),
        ([["a"], ["b"]], [["a", "b"]], "ipc"),
        ([["a"]], [["b"]], "nccl"),
        ([["a"], ["b"]], [["c", "d"], ["e", "f"]], "nccl"),
        ([["a"], ["b"]], [["b"], ["c"]], "nccl"),  # only learner 0 sends
        ([["a"], ["b"]], [["a"], ["c"]], "shared_memory"),
        ([["a"]], [["b"], ["b"]], "shared_memory"),  # NCCL takes no GPU twice
    ],
)
def test_auto_takes_the_fastest_transport_that_works(
    learners: list[list[str]], engines: list[list[str]], taken: str
) -> None:
    assert choose("auto", learner_gpus=learners, engine_gpus=engines) == taken
    assert choose(taken, learner_gpus=learners, engine_gpus=engines) == taken
    assert choose("shared_memory", learner_gpus=learners, engine_gpus=engines) == "shared_memory"


@pytest.mark.parametrize(
    ("wanted", "learners", "engines", "cure"),
    [
        (
            "nccl",
            [[]],
            [["b"]],
            r"nccl needs GPUs for learners and engines; they run on CPU and b: take auto",
        ),
        ("nccl", [["a"]], [["a"]], r"nccl needs learner 0 and every engine on a GPU of their own"),
        ("ipc", [["a"]], [["b", "a"]], r"ipc needs a learner on the GPU of every engine; .* a and b\+a"),
    ],
)
def test_a_transport_that_cannot_work_is_refused_in_one_line(
    wanted: str, learners: list[list[str]], engines: list[list[str]], cure: str
) -> None:
    with pytest.raises(ValueError, match=cure) as refusal:
        choose(wanted, learner_gpus=learners, engine_gpus=engines)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_a_recipe_whose_learner_has_no_gpu_is_refused_at_once(transport: str) -> None:
    with pytest.raises(ValidationError, match=r"give learner\.num_gpus_per_learner=1, or use auto"):
        RunConfig.model_validate({"engine": {"weight_transport": transport}})


class ToyEngine:
    """Writes down what an engine actor is asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked: list[tuple[str, Any]] = []

    def asked(self) -> list[tuple[str, Any]]:
        return self._asked

    def connect_learner(self, transport: str, init_info: dict[str, Any]) -> None:
        self._asked.append((transport, init_info))

    def begin_weights(self) -> None:
        self._asked.append(("begin", None))

    def take_weights(self, update_info: bytes) -> None:
        self._asked.append(("take", pickle.loads(update_info)))

    def end_weights(self, policy_version: int) -> dict[str, float]:
        self._asked.append(("end", policy_version))
        return {"time/engine_paused_s": self._seconds}


class TwoWeights:
    """Weights that change from one time to the next."""

    def __init__(self) -> None:
        self.value = 0.0

    def shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [("a", torch.float32, (2,)), ("b", torch.bfloat16, (1, 3))]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, dtype, shape in self.shapes():
            yield name, torch.full(shape, self.value, dtype=dtype)


def start(seconds: float) -> ActorHandle:
    create: Any = ray.remote(num_cpus=0)(ToyEngine)
    return create.remote(seconds)


def asked_of(engine: ActorHandle) -> list[tuple[str, Any]]:
    return ray.get(engine.asked.remote(), timeout=TIMEOUT_S)


@pytest.mark.slow
@pytest.mark.usefixtures("small_ray")
def test_the_learners_end_meets_every_engine_once_and_names_each_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's own factory and protocol around a trainer engine that sends tensors inside the message."""
    from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    from actors.weights import gpu_weight_sender

    @dataclass
    class ByMessage(TrainerInitInfo):
        backend: ClassVar[str] = "by_message"
        world_size: int = field(default=0, kw_only=True)

    class ByMessageEngine(TrainerWeightTransferEngine[ByMessage]):
        init_info_cls = ByMessage

        @classmethod
        def trainer_init(cls, init_info: ByMessage, *, client: Any, source: Any = None) -> Any:
            client.init_weight_transfer_engine({"world_size": init_info.world_size, "rank_offset": 1})
            return cls(client=client, source=source)

        def send_weights(self) -> None:
            assert self.source is not None
            pairs = list(NCCLTrainerWeightTransferEngine._checked_iter(self.source, self.source.metadata()))
            self.client.start_weight_update()
            self.client.update_weights({name: tensor.tolist() for name, tensor in pairs})
            self.client.finish_weight_update()

    monkeypatch.setitem(
        gpu_weight_sender.INIT_INFOS,
        "by_message",
        lambda rank, num_ends: ByMessage(rank=rank, world_size=num_ends),
    )
    if "by_message" not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine("by_message", ByMessageEngine)
    engines, weights = [start(0.25), start(0.5)], TwoWeights()
    sender = gpu_weight_sender.GpuWeightSender(
        "by_message", engines=engines, workers_per_engine=2, weights=weights, rank=0, timeout_s=TIMEOUT_S
    )
    for version in (1, 2):
        weights.value = float(version)
        assert sender.send(version) == {"time/engine_paused_s": 0.5}  # the slowest's
    for engine, first_rank in zip(engines, (1, 3), strict=True):
        assert asked_of(engine) == [
            ("by_message", {"world_size": 5, "rank_offset": first_rank}),
            ("begin", None),
            ("take", {"a": [1.0, 1.0], "b": [[1.0, 1.0, 1.0]]}),
            ("end", 1),
            ("begin", None),
            ("take", {"a": [2.0, 2.0], "b": [[2.0, 2.0, 2.0]]}),
            ("end", 2),
        ]


@pytest.mark.slow
@pytest.mark.usefixtures("small_ray")
def test_an_engine_that_does_not_answer_is_an_engines_error() -> None:
    """A bare time-out of Ray's would be told as one of the dialogues' tables."""
    from actors.weights import gpu_weight_sender

    engine = start(0.5)
    asked_of(engine)  # it runs
    engine.__ray_call__.remote(lambda self: time.sleep(5.0))
    calls = gpu_weight_sender.EngineUpdateCalls(
        [engine], transport="nccl", workers_per_engine=1, timeout_s=0.1
    )
    with pytest.raises(EngineError, match=r"an engine took longer than 0\.1 s"):
        calls.start_weight_update()


@pytest.mark.slow
@pytest.mark.usefixtures("small_ray")
def test_vllms_trainer_ends_of_both_gpu_transports_accept_our_settings() -> None:
    """Needs no GPU: the ends are constructed and never connected. Fails if vLLM renames a field."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    from actors.weights import gpu_weight_sender

    nccl = gpu_weight_sender.INIT_INFOS["nccl"](0, 5)
    assert (nccl.is_sender, vars(nccl)["world_size"], vars(nccl)["packed"]) == (True, 5, True)
    ipc = gpu_weight_sender.INIT_INFOS["ipc"](1, 5)
    assert (ipc.is_sender, vars(ipc)["packed"]) == (False, True)
    for info in (nccl, ipc):
        end = WeightTransferTrainerFactory._registry[info.backend]()
        assert vars(end)["init_info_cls"] is type(info)
