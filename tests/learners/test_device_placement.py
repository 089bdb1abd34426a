"""Placement of the policy on the learner's device: complete on one rank, one unit at a time when sharded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_init
from torch.testing._internal.distributed.fake_pg import FakeStore

from learners.model.policy import Policy, load_policy, shard
from learners.model.reference import load_reference
from tests.learners.tiny_parts import tiny_model

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny_model().save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def ranks() -> Iterator[int]:
    """Two, the other of which is not there: nothing is sent while a policy is sharded."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield 2
    dist.destroy_process_group()


def policy_of(folder: str, **settings: Any) -> Policy:
    return load_policy(folder, temperature=1.0, dtype=torch.bfloat16, recompute_activations=False, **settings)


def tensors_of(policy: Policy) -> list[Tensor]:
    """Everything that the policy computes with, be it registered or not."""
    plain = [value for module in policy.modules() for value in vars(module).values()]
    return [*policy.parameters(), *policy.buffers(), *(v for v in plain if isinstance(v, Tensor))]


def test_on_one_rank_the_policy_is_unsharded(folder: str):
    policy = policy_of(folder, lora_rank=4, has_critic=True)
    assert {tensor.device for tensor in tensors_of(policy)} == {CPU}
    shard(policy, num_ranks=1, device=ELSEWHERE)
    assert {tensor.device for tensor in tensors_of(policy)} == {ELSEWHERE}
    reference = load_reference(folder, policy=policy, num_ranks=1, device=ELSEWHERE)
    assert {tensor.device for tensor in tensors_of(reference)} == {ELSEWHERE}


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}, {"has_critic": True}, {"frozen": True}])
def test_fully_shard_moves_every_tensor_and_a_unit_at_a_time(
    settings: dict[str, Any], folder: str, ranks: int, monkeypatch: pytest.MonkeyPatch
):
    """It moves what a unit holds to the mesh's device before it cuts it: seen here by what it is given."""
    moved: list[list[Tensor]] = []
    move = _fsdp_init._move_states_to_device

    def spy(params: list[Any], buffers: list[Tensor], device: torch.device) -> None:
        moved.append([*params, *buffers])
        move(params, buffers, device)

    monkeypatch.setattr(_fsdp_init, "_move_states_to_device", spy)
    policy = policy_of(folder, **settings)
    units = [list(layer.parameters()) for layer in policy.layers]
    before = tensors_of(policy)
    shard(policy, num_ranks=ranks, device=CPU)
    assert {id(tensor) for unit in moved for tensor in unit} == {id(tensor) for tensor in before}
    assert [len(unit) for unit in moved[: len(units)]] == [len(unit) for unit in units]
    assert sum(len(unit) for unit in moved) == len(before)  # each once
