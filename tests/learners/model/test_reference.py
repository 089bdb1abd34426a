"""The reference model on one rank: its origin, and the effect of its KL on a step."""

import resource
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from learners.batch.packing import micro_batches, pack
from learners.config import LearnerConfig
from learners.loss_config import ReferenceKlConfig, ReinforceConfig
from learners.model.policy import Policy, load_policy
from learners.model.reference import load_reference, reference_logprobs, write_reference
from learners.training.optimizer_step import (
    accumulate_gradients,
    apply_gradients,
    grpo_sums,
    make_optimizer,
    step_metrics,
)
from tests.learners.batch.test_packing import samples_of
from tests.learners.tiny_parts import tiny_model

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")
SAMPLES = samples_of(3)
NUM_TOKENS = sum(sample.num_loss_tokens for sample in SAMPLES)


def policy_of(folder: Path, *, dtype: torch.dtype = torch.float32, lora_rank: int = 0) -> Policy:
    tiny_model().save_pretrained(folder)
    return load_policy(
        str(folder),
        temperature=0.8,
        dtype=dtype,
        recompute_activations=False,
        lora_rank=lora_rank,
    )


MEASURED = LearnerConfig(kl=ReferenceKlConfig(type="k3"))


def reference_of(policy: Policy, folder: Path) -> Policy:
    write_reference(folder, policy, rank=0, num_ranks=1, device=CPU)
    return load_reference(str(folder), policy=policy, num_ranks=1, device=CPU)


def gradients(policy: Policy, config: LearnerConfig, reference: Policy | None) -> dict[str, float]:
    """Gradients into `.grad`; the sums."""
    loss_fn = partial(
        grpo_sums,
        config=config,
        num_tokens=NUM_TOKENS,
        policy_version=0,
        reference=partial(reference_logprobs, reference) if reference else None,
    )
    batches = micro_batches(SAMPLES, max_tokens=128, rank=0, num_ranks=1, seed=0)
    return accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=1)


def step(policy: Policy, optimizer: Any, config: LearnerConfig, reference: Policy | None) -> dict[str, float]:
    sums = gradients(policy, config, reference)
    norm = apply_gradients(policy, optimizer, lr=0.003, max_grad_norm=1.0, loss=sums["loss"])
    return step_metrics(
        sums, grad_norm=norm, lr=0.003, num_tokens=1, num_loss_tokens=NUM_TOKENS, duration_s=1.0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_at_the_start_the_kl_is_exactly_zero(tmp_path: Path, dtype: torch.dtype, lora_rank: int):
    """Also in bfloat16, where the reference is stored narrower than the policy: the same products are
    rounded."""
    policy = policy_of(tmp_path / "policy", dtype=dtype, lora_rank=lora_rank)
    reference = reference_of(policy, tmp_path / "reference")
    batch = pack(SAMPLES)
    assert reference_logprobs(reference, batch).equal(policy(batch).logprobs.detach())
    metrics = step(policy, make_optimizer(policy, config=LearnerConfig()), MEASURED, reference)
    assert metrics["learner/reference_kl"] == 0.0


def test_the_reference_is_frozen_and_its_linear_layers_are_stored_in_bfloat16(tmp_path: Path):
    policy = policy_of(tmp_path / "policy", dtype=torch.bfloat16)
    reference = reference_of(policy, tmp_path / "reference")
    assert not any(p.requires_grad for p in reference.parameters()) and not reference.training
    dtypes = {name.rpartition(".")[0].rpartition(".")[2]: p.dtype for name, p in reference.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        "embed_tokens", "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm",
    }  # fmt: skip
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    assert not reference_logprobs(reference, pack(SAMPLES)).requires_grad


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_a_coefficient_of_zero_only_measures(tmp_path: Path, name: Any):
    policy = policy_of(tmp_path / "policy")
    reference = reference_of(policy, tmp_path / "reference")
    optimizer = make_optimizer(policy, config=LearnerConfig())
    step(policy, optimizer, LearnerConfig(), None)
    gradients(policy, LearnerConfig(), None)
    expected = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    sums = gradients(policy, LearnerConfig(kl=ReferenceKlConfig(type=name)), reference)
    assert sums["reference_kl"] > 0
    assert all(p.grad is not None and p.grad.equal(expected[n]) for n, p in policy.named_parameters())


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_the_kl_grows_with_training_and_less_under_a_coefficient(tmp_path: Path, name: Any):
    def trained(coefficient: float) -> list[float]:
        policy = policy_of(tmp_path / "policy")
        reference = reference_of(policy, tmp_path / "reference")
        config = LearnerConfig(
            kl=ReferenceKlConfig(type=name, coefficient=coefficient), loss=ReinforceConfig()
        )
        optimizer = make_optimizer(policy, config=config)
        return [step(policy, optimizer, config, reference)["learner/reference_kl"] for _ in range(6)]

    free, held = trained(0.0), trained(5.0)
    assert free[0] == held[0] == 0.0
    assert all(later > earlier for earlier, later in pairwise(free))
    assert held[-1] < free[-1]


def test_a_new_reference_replaces_the_old_one_and_leaves_no_other_files(tmp_path: Path):
    """Where GRPO begins again, the old one would be another policy's."""
    policy = policy_of(tmp_path / "policy")
    folder = tmp_path / "reference"
    reference_of(policy, folder)
    with torch.no_grad():
        policy.head.mul_(0.5)
    reference = reference_of(policy, folder)
    assert reference_logprobs(reference, pack(SAMPLES)).equal(policy(pack(SAMPLES)).logprobs.detach())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy", "reference"]


def test_a_missing_reference_is_an_error_with_its_cure(tmp_path: Path):
    policy = policy_of(tmp_path / "policy")
    with pytest.raises(
        FileNotFoundError, match=r"no reference model there: copy it .* learner\.kl\.reference"
    ):
        load_reference(str(tmp_path / "none"), policy=policy, num_ranks=1, device=CPU)


def test_a_reference_with_another_vocabulary_is_refused(tmp_path: Path):
    policy = policy_of(tmp_path / "policy")
    other = tiny_model()
    other.resize_token_embeddings(60)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"its vocabulary has 60 tokens and the policy's 50"):
        load_reference(str(tmp_path / "other"), policy=policy, num_ranks=1, device=CPU)


def test_a_failed_write_is_an_oserror_with_the_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    policy = policy_of(tmp_path / "policy")
    with pytest.raises(OSError, match="the reference model cannot be written"):
        write_reference(tmp_path / "file" / "reference", policy, rank=0, num_ranks=1, device=CPU)


def test_a_full_disk_is_an_oserror_that_names_the_folder(tmp_path: Path):
    """A limit on the size of files stands for the disk's end."""
    policy = policy_of(tmp_path / "policy")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"reference: the reference model cannot be written \(.*partial: "):
            write_reference(tmp_path / "reference", policy, rank=0, num_ranks=1, device=CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "reference").exists()
