"""Checkpoint storage: everything is safetensors or JSON, the optimizer state too, so that no code is run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as read_block
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from learners.config import LearnerConfig
from learners.losses.entropy import EntropyControl
from learners.model.checkpoint import Progress, load_checkpoint
from learners.model.policy import Policy, shard
from learners.model.safetensors_storage import INDEX, CheckpointFolderReader
from learners.training.optimizer_step import make_optimizer
from tests.learners.local_ranks import join
from tests.learners.tiny_parts import save_checkpoint, tiny_policy

PROGRESS = Progress(stage="grpo", entropy=EntropyControl(coefficient=0.1 + 0.2, last_entropy=1 / 3))


def trained() -> tuple[Policy, torch.optim.Optimizer]:
    """One step further than a new one, so that the optimizer has moments."""
    policy = tiny_policy()
    optimizer = make_optimizer(policy, config=LearnerConfig())
    for index, parameter in enumerate(policy.parameters()):
        parameter.grad = torch.full_like(parameter, 0.01 * (index + 1))
    optimizer.step()
    return policy, optimizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy, optimizer = trained()
    save_checkpoint(tmp_path / "c", policy, optimizer, PROGRESS)
    return tmp_path / "c"


def slices(folder: Path) -> list[list[Any]]:
    return json.loads((folder / INDEX).read_text())["slices"]


def test_every_byte_of_a_checkpoint_is_a_safetensors_block_or_json(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [INDEX, "rank-0.bin"]
    data, covered, kinds = (folder / "rank-0.bin").read_bytes(), 0, set[str]()
    for name, at, file, offset, length in slices(folder):
        assert (file, offset) == ("rank-0.bin", covered)
        block = data[offset : offset + length]
        covered += length
        kinds.add("tensor" if at is not None else "json")
        if at is None:
            json.loads(block)
        else:
            assert isinstance(read_block(block)["tensor"], Tensor), name
    assert covered == len(data) and kinds == {"tensor", "json"}


def test_weights_moments_and_scalars_are_restored_bit_for_bit(folder: Path) -> None:
    before, optimizer = trained()
    policy = tiny_policy()
    resumed = make_optimizer(policy, config=LearnerConfig())
    assert load_checkpoint(folder, policy, resumed) == PROGRESS
    for mine, theirs in zip(policy.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    ours, theirs = resumed.state_dict(), optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert isinstance(ours["param_groups"][0]["betas"], tuple)
    assert ours["state"].keys() == theirs["state"].keys() != set()
    for number, moments in theirs["state"].items():
        assert all(torch.equal(ours["state"][number][name], value) for name, value in moments.items())


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda index: index["slices"][0].__setitem__(2, "../other/rank-0.bin"),
            "is not a file of this folder",
        ),
        (lambda index: index["slices"][0].__setitem__(2, "/etc/passwd"), "is not a file of this folder"),
        (lambda index: index["slices"][0].__setitem__(3, "x"), "ValueError"),
        (lambda index: index.pop("slices"), "KeyError"),
        (
            lambda index: next(e for e in index["entries"].values() if e).__setitem__("dtype", "load"),
            "not a number format",
        ),
    ],
)
def test_an_index_that_was_tampered_with_is_refused_in_one_line(
    folder: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    changed(folder, change)
    policy = tiny_policy()
    with pytest.raises(
        OSError, match=rf"the checkpoint is damaged .*{says}.*: resume from another one"
    ) as error:
        load_checkpoint(folder, policy, make_optimizer(policy, config=LearnerConfig()))
    assert "\n" not in str(error.value)


def test_the_index_names_every_tensor_with_size_and_format(folder: Path) -> None:
    about: Any = CheckpointFolderReader(folder).read_metadata()
    model = {f"model.{name}": tensor for name, tensor in tiny_policy().state_dict().items()}
    for name, tensor in model.items():
        entry = about.state_dict_metadata[name]
        assert (entry.size, entry.properties.dtype) == (tensor.shape, tensor.dtype)


def save_on_two(rank: int, folder: Path) -> None:
    """Half of each weight on each rank; each has its own file, and each reads its part back."""
    join(rank, num_ranks=2, folder=folder)
    policy = shard(tiny_policy(), num_ranks=2, device=torch.device("cpu"))
    optimizer = make_optimizer(policy, config=LearnerConfig())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    save_checkpoint(folder / "c", policy, optimizer, PROGRESS)
    again = shard(tiny_policy(), num_ranks=2, device=torch.device("cpu"))
    assert load_checkpoint(folder / "c", again, make_optimizer(again, config=LearnerConfig())) == PROGRESS
    for mine, theirs in zip(again.parameters(), policy.parameters(), strict=True):
        assert isinstance(mine, DTensor) and isinstance(theirs, DTensor)
        assert torch.equal(mine.to_local(), theirs.to_local())
    dist.destroy_process_group()


@pytest.mark.slow
def test_one_rank_reads_the_checkpoint_of_two(tmp_path: Path) -> None:
    spawn(save_on_two, args=(tmp_path,), nprocs=2)
    assert {file for _, _, file, _, _ in slices(tmp_path / "c")} == {"rank-0.bin", "rank-1.bin"}
    policy = tiny_policy()
    assert load_checkpoint(tmp_path / "c", policy, make_optimizer(policy, config=LearnerConfig())) == PROGRESS
    for mine, plain in zip(policy.parameters(), tiny_policy().parameters(), strict=True):
        assert torch.equal(mine, plain + 1.0)
