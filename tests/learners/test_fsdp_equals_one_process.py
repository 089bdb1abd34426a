"""FSDP2 over gloo against one process, in float64: two and four ranks give the gradient and the steps of one,
with work that does not divide evenly, and checkpoints go from any number of ranks to any other."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from torch.optim import Optimizer

from learners.batch.aggregation import select_and_weigh
from learners.batch.packing import micro_batches
from learners.batch.samples import TrainingSample
from learners.config import LearnerConfig
from learners.loss_config import EntropyConfig, GspoConfig, MaskedConfig, MeanConfig, TurnClipConfig
from learners.model.checkpoint import Progress, load_checkpoint
from learners.model.policy import Policy, shard
from learners.model.weight_export import full_state_dict
from learners.training.optimizer_step import accumulate_gradients, apply_gradients, grpo_sums, make_optimizer
from tests.learners.batch.test_packing_gradient_exact import TEMPERATURE, dialogues
from tests.learners.local_ranks import join
from tests.learners.tiny_parts import save_checkpoint, tiny_policy

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CLOSE = 1e-9
CLIPS: dict[str, Any] = {"clip_low": 0.3, "clip_high": 0.4}
SAMPLES = dialogues(3)
PPO = LearnerConfig()
CASES = {
    "several micro-batches": (PPO, SAMPLES, 64),
    "fewer samples than ranks": (PPO, SAMPLES[:1], 64),
    "one sample too many": (PPO, SAMPLES[:5], 48),
    "turn": (
        LearnerConfig(
            loss=TurnClipConfig(**CLIPS),
            aggregation=MeanConfig(type="sequence_mean"),
            entropy=EntropyConfig(coefficient=0.1),
        ),
        SAMPLES,
        64,
    ),
    "gspo": (
        LearnerConfig(loss=GspoConfig(**CLIPS), importance=MaskedConfig(level="turn")),
        SAMPLES,
        48,
    ),
}
"""Settings, samples, and the most tokens of a micro-batch: on some ranks micro-batches are empty."""


def gradient(
    policy: Policy,
    samples: list[TrainingSample],
    *,
    config: LearnerConfig,
    max_tokens: int,
    rank: int,
    ranks: int,
) -> dict[str, float]:
    """The step's gradient into the policy; the sums over all ranks."""
    taken, weights = select_and_weigh(samples, config=config, gym_shares={}, seed=0)
    num_tokens = sum(sample.num_loss_tokens for sample in taken)
    return accumulate_gradients(
        policy,
        micro_batches(taken, weights=weights, max_tokens=max_tokens, rank=rank, num_ranks=ranks, seed=1),
        loss_fn=partial(grpo_sums, config=config, num_tokens=num_tokens, policy_version=0),
        device=CPU,
        num_ranks=ranks,
    )


def gradients(*, rank: int, ranks: int) -> dict[str, tuple[dict[str, float], dict[str, Tensor]]]:
    """Sums and whole gradients of every case."""
    found = {}
    for case, (config, samples, max_tokens) in CASES.items():
        policy = make_policy(config, ranks=ranks)
        sums = gradient(policy, samples, config=config, max_tokens=max_tokens, rank=rank, ranks=ranks)
        found[case] = (sums, {name: whole(p.grad) for name, p in policy.named_parameters()})
    return found


def make_policy(config: LearnerConfig, *, ranks: int) -> Policy:
    policy = tiny_policy(temperature=TEMPERATURE, entropies_have_gradient=config.entropy.coefficient > 0)
    return shard(policy, num_ranks=ranks, device=CPU)


def whole(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()


def steps(
    policy: Policy, optimizer: Optimizer, *, first: int, rank: int, ranks: int
) -> list[tuple[float, float]]:
    """Three optimizer steps, each on its own samples; loss and gradient norm of each."""
    done = []
    for step in range(first, first + 3):
        samples = SAMPLES[step % 3 : step % 3 + 4]
        sums = gradient(policy, samples, config=PPO, max_tokens=64, rank=rank, ranks=ranks)
        norm = apply_gradients(policy, optimizer, lr=0.01, max_grad_norm=0.5, loss=sums["loss"])
        done.append((sums["loss"], norm))
    return done


def train(folder: Path, *, rank: int, ranks: int) -> dict[str, Any]:
    """Three steps, a checkpoint under the number of ranks, three more; all that came of it."""
    policy = make_policy(PPO, ranks=ranks)
    optimizer = make_optimizer(policy, config=PPO)
    before = steps(policy, optimizer, first=0, rank=rank, ranks=ranks)
    save_checkpoint(folder / str(ranks), policy, optimizer, Progress(stage="grpo"))
    after = steps(policy, optimizer, first=3, rank=rank, ranks=ranks)
    return {"steps": before + after, "weights": full_state_dict(policy, keep=rank == 0)}


def resume(checkpoint: Path, *, rank: int, ranks: int) -> dict[str, Any]:
    """Goes on from a checkpoint by three steps."""
    policy = make_policy(PPO, ranks=ranks)
    optimizer = make_optimizer(policy, config=PPO)
    assert load_checkpoint(checkpoint, policy, optimizer).stage == "grpo"
    after = steps(policy, optimizer, first=3, rank=rank, ranks=ranks)
    return {"steps": after, "weights": full_state_dict(policy, keep=rank == 0)}


def refuse(*, rank: int, ranks: int) -> None:
    """A number that is not finite lies on one rank alone: every rank refuses the step."""
    policy = make_policy(PPO, ranks=ranks)
    optimizer = make_optimizer(policy, config=PPO)
    steps(policy, optimizer, first=0, rank=rank, ranks=ranks)
    before, moments = full_state_dict(policy, keep=True), str(optimizer.state_dict())
    bad = replace(SAMPLES[0], behavior_logprobs=np.full_like(SAMPLES[0].behavior_logprobs, np.nan))
    sums = gradient(policy, [bad, *SAMPLES[1:]], config=PPO, max_tokens=48, rank=rank, ranks=ranks)
    apply_gradients(policy, optimizer, lr=0.01, max_grad_norm=0.5, loss=sums["loss"])
    assert not math.isfinite(sums["loss"])  # the same on every rank, whose own gradient may well be finite
    after = full_state_dict(policy, keep=True)
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
    assert str(optimizer.state_dict()) == moments


def one_of(rank: int, ranks: int, folder: Path) -> None:
    """One process of `ranks`: what rank 0 found lies in `<ranks>.pt`."""
    join(rank, num_ranks=ranks, folder=folder)
    found = {
        "gradients": gradients(rank=rank, ranks=ranks),
        "run": train(folder, rank=rank, ranks=ranks),
        "from one": resume(folder / "1", rank=rank, ranks=ranks),
    }
    refuse(rank=rank, ranks=ranks)
    if rank == 0:
        torch.save(found, folder / f"{ranks}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder with one rank's checkpoint, and what it found."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, {"gradients": gradients(rank=0, ranks=1), "run": train(folder, rank=0, ranks=1)}


@pytest.mark.parametrize("ranks", [2, 4])
def test_many_ranks_learn_as_one(ranks: int, alone: tuple[Path, dict[str, Any]]):
    """The gradients of every case, six optimizer steps, and what comes after a checkpoint of one rank on
    many, and of many on one: the same numbers. A step that is bad on one rank is refused on all
    of them."""
    folder, expected = alone
    spawn(one_of, args=(ranks, folder), nprocs=ranks)
    found = torch.load(folder / f"{ranks}.pt")

    assert found["gradients"].keys() == expected["gradients"].keys()
    for case, (sums, gradients) in expected["gradients"].items():
        their_sums, theirs = found["gradients"][case]
        assert their_sums == pytest.approx(sums, rel=1e-9, abs=1e-9), case
        assert theirs.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(theirs[name], gradient, rtol=0, atol=CLOSE), (case, name)
            assert gradient.abs().max() > 1e3 * CLOSE, (case, name)

    same_run(found["run"], expected["run"], first=0)
    same_run(found["from one"], expected["run"], first=3)
    same_run(resume(folder / str(ranks), rank=0, ranks=1), expected["run"], first=3)


def same_run(found: dict[str, Any], expected: dict[str, Any], *, first: int) -> None:
    """Losses, norms and last weights, from step `first` on."""
    assert len(found["steps"]) == len(expected["steps"]) - first
    for mine, theirs in zip(found["steps"], expected["steps"][first:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        assert torch.allclose(found["weights"][name], tensor, rtol=0, atol=CLOSE), name
