"""One optimizer step, on one rank and on two, and checkpoints between them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from learners.batch.packing import micro_batches
from learners.config import LearnerConfig
from learners.losses.entropy import EntropyControl
from learners.model.checkpoint import Progress, export_model, is_checkpoint, load_checkpoint
from learners.model.policy import Policy, load_policy, shard
from learners.model.weight_export import full_state_dict
from learners.training.optimizer_step import (
    accumulate_gradients,
    apply_gradients,
    grpo_sums,
    make_optimizer,
    step_metrics,
    warmed_up,
)
from tests.learners.batch.test_packing import samples_of
from tests.learners.local_ranks import join
from tests.learners.tiny_parts import plain_model, save_checkpoint, tiny_model, tiny_policy

CPU = torch.device("cpu")
CONFIG = LearnerConfig(weight_decay=0.1)
SAMPLES = samples_of(3)
NUM_TOKENS = sum(sample.num_loss_tokens for sample in SAMPLES)


def update(
    policy: Policy, optimizer: torch.optim.Optimizer, *, rank: int, num_ranks: int
) -> dict[str, float]:
    loss_fn = partial(grpo_sums, config=CONFIG, num_tokens=NUM_TOKENS, policy_version=0)
    batches = micro_batches(SAMPLES, max_tokens=128, rank=rank, num_ranks=num_ranks, seed=0)
    sums = accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=num_ranks)
    norm = apply_gradients(policy, optimizer, lr=0.01, max_grad_norm=0.5, loss=sums["loss"])
    return sums | {"norm": norm}


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in full_state_dict(policy, keep=True).items()}


def test_warm_up_rises_to_the_learning_rate_and_stays():
    rates = [warmed_up(1.0, step=step, warmup_steps=3) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_step_changes_the_weights_and_reports_its_gap():
    """The behavior logprobs are -0.5, -0.6, ... whatever the policy: the gap is their true distance."""
    policy = tiny_policy()
    sums = update(policy, make_optimizer(policy, config=CONFIG), rank=0, num_ranks=1)
    metrics = step_metrics(
        sums, grad_norm=sums["norm"], lr=0.01, num_tokens=400, num_loss_tokens=NUM_TOKENS, duration_s=2.0
    )
    assert metrics["learner/logprob_gap/num_tokens"] == NUM_TOKENS
    assert metrics["learner/logprob_gap/mean"] > 1.0
    assert metrics["learner/tokens_per_s"] == 200.0
    assert metrics["learner/num_skipped"] == 0.0
    assert all(p.grad is None for p in policy.parameters())
    assert not policy.head.equal(tiny_policy().head)


def test_the_gap_excludes_completions_that_span_a_weight_update():
    """Their later tokens are of the newest version, and rest on keys and values of the one before."""
    policy = tiny_policy()
    (batch,) = micro_batches(SAMPLES, max_tokens=1024, rank=0, num_ranks=1, seed=0)
    versions = torch.full_like(batch.policy_versions, 7)
    first = batch.turns == batch.turns[0]
    versions[first.nonzero()[0]] = 6
    mixed = replace(batch, policy_versions=versions)
    sums = grpo_sums(mixed, policy(mixed), config=CONFIG, num_tokens=NUM_TOKENS, policy_version=7)
    assert 1 < int(first.sum()) < NUM_TOKENS
    assert int(sums["own"]) == NUM_TOKENS - int(first.sum())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_step_leaves_weights_and_optimizer_untouched(where: str):
    policy = tiny_policy()
    optimizer = make_optimizer(policy, config=CONFIG)
    update(policy, optimizer, rank=0, num_ranks=1)
    before, moments = weights_of(policy), str(optimizer.state_dict())
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, float("inf") if where == "gradient" else 1.0)
    loss = float("nan") if where == "loss" else 1.0
    apply_gradients(policy, optimizer, lr=0.01, max_grad_norm=1.0, loss=loss)
    assert all(tensor.equal(before[name]) for name, tensor in weights_of(policy).items())
    assert str(optimizer.state_dict()) == moments
    update(policy, optimizer, rank=0, num_ranks=1)
    assert any(not tensor.equal(before[name]) for name, tensor in weights_of(policy).items())


def test_training_resumes_exactly_from_a_checkpoint(tmp_path: Path):
    policy = tiny_policy()
    optimizer = make_optimizer(policy, config=CONFIG)
    update(policy, optimizer, rank=0, num_ranks=1)
    progress = Progress(stage="grpo", entropy=EntropyControl(coefficient=0.015, last_entropy=0.7))
    save_checkpoint(tmp_path / "c", policy, optimizer, progress)
    update(policy, optimizer, rank=0, num_ranks=1)

    resumed = tiny_policy()
    resumed_optimizer = make_optimizer(resumed, config=CONFIG)
    assert load_checkpoint(tmp_path / "c", resumed, resumed_optimizer) == progress
    update(resumed, resumed_optimizer, rank=0, num_ranks=1)
    expected = weights_of(policy)
    assert all(tensor.equal(expected[name]) for name, tensor in weights_of(resumed).items())


def test_an_unfinished_checkpoint_is_refused(tmp_path: Path):
    policy = tiny_policy()
    assert not is_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no finished checkpoint there"):
        load_checkpoint(tmp_path, policy, make_optimizer(policy, config=CONFIG))


def two_ranks(rank: int, folder: Path) -> None:
    """Loads the checkpoint that one rank wrote, takes a step, writes checkpoint and export."""
    join(rank, num_ranks=2, folder=folder)
    policy = load_policy(
        str(folder / "model"), temperature=1.0, dtype=torch.float32, recompute_activations=False
    )
    policy = shard(policy, num_ranks=2, device=CPU)
    optimizer = make_optimizer(policy, config=CONFIG)
    load_checkpoint(folder / "one", policy, optimizer)
    sums = update(policy, optimizer, rank=rank, num_ranks=2)
    save_checkpoint(folder / "two", policy, optimizer, Progress(stage="sft"))
    state = full_state_dict(policy, keep=rank == 0)
    export_model(folder / "export", policy, tokenizer=None, is_writer=rank == 0)
    if rank == 0:
        torch.save({"sums": sums, "state": state}, folder / "result.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one_and_share_its_checkpoints(tmp_path: Path):
    """FSDP2 over gloo: same sums, same norm, same weights after AdamW; checkpoints cross from one rank to
    two and back."""
    tiny_model().save_pretrained(tmp_path / "model")
    policy = load_policy(
        str(tmp_path / "model"), temperature=1.0, dtype=torch.float32, recompute_activations=False
    )
    optimizer = make_optimizer(policy, config=CONFIG)
    update(policy, optimizer, rank=0, num_ranks=1)
    save_checkpoint(tmp_path / "one", policy, optimizer, Progress(stage="grpo"))
    expected_sums = update(policy, optimizer, rank=0, num_ranks=1)
    expected = weights_of(policy)

    spawn(two_ranks, args=(tmp_path,), nprocs=2)

    result = torch.load(tmp_path / "result.pt")
    assert result["sums"] == pytest.approx(expected_sums, rel=1e-5)
    assert result["state"].keys() == expected.keys()
    for name, tensor in result["state"].items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name

    resumed = tiny_policy(dtype=torch.float32)
    assert load_checkpoint(tmp_path / "two", resumed, make_optimizer(resumed, config=CONFIG)).stage == "sft"
    exported = dict(plain_model(str(tmp_path / "export")).named_parameters())
    for name, tensor in weights_of(resumed).items():
        assert tensor.equal(result["state"][name]) and tensor.equal(exported[name]), name
