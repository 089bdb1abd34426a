"""Adapters, bfloat16 and the reference on two ranks (FSDP2 over gloo), each against one rank."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from learners.batch.packing import micro_batches
from learners.config import LearnerConfig
from learners.loss_config import ReferenceKlConfig
from learners.model.checkpoint import Progress, load_checkpoint
from learners.model.policy import Policy, load_policy, shard
from learners.model.reference import load_reference, reference_logprobs, write_reference
from learners.model.weight_export import full_state_dict
from learners.training.optimizer_step import accumulate_gradients, apply_gradients, grpo_sums, make_optimizer
from tests.learners.batch.test_packing import samples_of
from tests.learners.local_ranks import join
from tests.learners.tiny_parts import save_checkpoint, tiny_model

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SAMPLES = samples_of(6)
NUM_TOKENS = sum(sample.num_loss_tokens for sample in SAMPLES)
CONFIG = LearnerConfig(kl=ReferenceKlConfig(type="k3", coefficient=0.5))
CASES: dict[str, dict[str, Any]] = {
    "full": {"dtype": torch.float32, "lora_rank": 0, "recompute_activations": False},
    "lora": {"dtype": torch.float32, "lora_rank": 4, "recompute_activations": True},
    "bfloat16": {"dtype": torch.bfloat16, "lora_rank": 0, "recompute_activations": False},
    "bfloat16_lora": {"dtype": torch.bfloat16, "lora_rank": 4, "recompute_activations": True},
}
NUM_STEPS = 3


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def train(case: str, folder: Path, *, rank: int, num_ranks: int) -> dict[str, Any]:
    """Three steps away from a reference that is the policy's own beginning, then a checkpoint."""
    settings = CASES[case]
    policy = load_policy(str(folder / "model"), temperature=1.0, **settings)
    policy = shard(policy, num_ranks=num_ranks, device=CPU)
    where = folder / f"{case}-{num_ranks}"
    write_reference(where / "reference", policy, rank=rank, num_ranks=num_ranks, device=CPU)
    reference = load_reference(str(where / "reference"), policy=policy, num_ranks=num_ranks, device=CPU)
    optimizer = make_optimizer(policy, config=CONFIG)
    gathered = computed_with(policy)
    steps = [step(policy, optimizer, reference, rank=rank, num_ranks=num_ranks) for _ in range(NUM_STEPS)]
    save_checkpoint(where / "checkpoint", policy, optimizer, Progress(stage="grpo"))
    return {
        "sums": [sums for sums, _ in steps],
        "gradients": steps[0][1],
        "state": full_state_dict(policy, keep=True),
        "kept": {(p.dtype, p.requires_grad) for p in policy.parameters()},
        "moments": {t.dtype for state in optimizer.state.values() for t in state.values()},
        "gathered": gathered,
    }


def step(
    policy: Policy, optimizer: torch.optim.Optimizer, reference: Policy, *, rank: int, num_ranks: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    loss_fn = partial(
        grpo_sums,
        config=CONFIG,
        num_tokens=NUM_TOKENS,
        policy_version=0,
        reference=partial(reference_logprobs, reference),
    )
    batches = micro_batches(SAMPLES, max_tokens=128, rank=rank, num_ranks=num_ranks, seed=0)
    sums = accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=num_ranks)
    gradients = {n: whole(p.grad) for n, p in policy.named_parameters() if p.grad is not None}
    sums["norm"] = apply_gradients(policy, optimizer, lr=0.003, max_grad_norm=0.5, loss=sums["loss"])
    return sums, gradients


def computed_with(policy: Policy) -> set[torch.dtype]:
    """Filled while the policy runs: the formats of the weights that its second layer sees."""
    seen: set[torch.dtype] = set()
    mlp: Any = policy.layers[1].mlp
    mlp.register_forward_pre_hook(lambda module, _: seen.update(p.dtype for p in module.parameters()))
    return seen


def two_ranks(rank: int, folder: Path) -> None:
    join(rank, num_ranks=2, folder=folder)
    results = {case: train(case, folder, rank=rank, num_ranks=2) for case in CASES}
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, dict[str, Any]]:
    """Each case on one rank."""
    return {case: train(case, folder, rank=0, num_ranks=1) for case in CASES}


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, dict[str, Any]]:
    """Each case on two ranks, which agree on every number."""
    spawn(two_ranks, args=(folder,), nprocs=2)
    ranks = [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]
    for case in CASES:
        assert ranks[0][case]["sums"] == ranks[1][case]["sums"]
    return ranks[0]


@pytest.mark.parametrize("case", ["full", "lora"])
def test_two_ranks_take_the_steps_of_one_in_float32(case: str, one: dict[str, Any], two: dict[str, Any]):
    mine, theirs = two[case], one[case]
    for sums, expected in zip(mine["sums"], theirs["sums"], strict=True):
        assert sums == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert mine["sums"][0]["reference_kl"] == 0.0 < mine["sums"][1]["reference_kl"]
    assert mine["gradients"].keys() == theirs["gradients"].keys()
    for name, tensor in mine["gradients"].items():
        assert torch.allclose(tensor, theirs["gradients"][name], atol=1e-5), name
    assert mine["state"].keys() == theirs["state"].keys()
    for name, tensor in mine["state"].items():
        assert torch.allclose(tensor, theirs["state"][name], atol=1e-4), name


def test_in_bfloat16_weights_are_gathered_narrow_and_masters_and_moments_stay_wide(
    one: dict[str, Any], two: dict[str, Any]
):
    bfloat16, float32 = torch.bfloat16, torch.float32
    assert two["bfloat16"]["kept"] == one["bfloat16"]["kept"] == {(float32, True)}
    assert two["bfloat16"]["moments"] == two["bfloat16_lora"]["moments"] == {float32}
    assert two["bfloat16"]["gathered"] == two["bfloat16_lora"]["gathered"] == {bfloat16}
    assert one["bfloat16"]["gathered"] == two["full"]["gathered"] == {float32}
    kept = {(float32, True), (bfloat16, False), (float32, False)}  # adapters; projections; norms, embedding
    assert two["bfloat16_lora"]["kept"] == one["bfloat16_lora"]["kept"] == kept


@pytest.mark.parametrize("case", ["bfloat16", "bfloat16_lora"])
def test_in_bfloat16_two_ranks_agree_with_one_as_far_as_bfloat16_goes(
    case: str, one: dict[str, Any], two: dict[str, Any]
):
    """Both are as far from float32 as rounding to eight bits puts them."""
    exact = one[case.replace("bfloat16_", "").replace("bfloat16", "full")]

    def flat(result: dict[str, Any]) -> torch.Tensor:
        return torch.cat([result["gradients"][name].flatten() for name in sorted(exact["gradients"])])

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm() / b.norm())

    single, double = distance(flat(one[case]), flat(exact)), distance(flat(two[case]), flat(exact))
    assert 0 < single < 0.05 and 0 < double < 0.05
    assert distance(flat(two[case]), flat(one[case])) < 0.05
    assert two[case]["sums"][0]["loss"] == pytest.approx(one[case]["sums"][0]["loss"], rel=0.03)
    assert two[case]["sums"][0]["reference_kl"] == 0.0


@pytest.mark.parametrize("case", ["lora", "bfloat16_lora"])
def test_one_rank_resumes_the_checkpoint_of_two(case: str, folder: Path, two: dict[str, Any]):
    policy = load_policy(str(folder / "model"), temperature=1.0, seed=7, **CASES[case])
    optimizer = make_optimizer(policy, config=CONFIG)
    progress = load_checkpoint(folder / f"{case}-2" / "checkpoint", policy, optimizer)
    assert progress.stage == "grpo"
    state = full_state_dict(policy, keep=True)
    for name, tensor in two[case]["state"].items():
        assert torch.allclose(state[name], tensor, atol=1e-6), name
