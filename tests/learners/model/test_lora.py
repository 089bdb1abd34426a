"""LoRA adapters: trainable weights, merged weights for the engines, and checkpoints."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learners.advantages.config import TurnGaeConfig
from learners.batch.packing import pack
from learners.config import LearnerConfig
from learners.model.checkpoint import Progress, export_model, load_checkpoint
from learners.model.lora import add_adapters
from learners.model.policy import PACKED_CAUSAL, Policy, load_policy
from learners.model.safetensors_storage import CheckpointFolderReader
from learners.model.weight_export import full_state_dict
from learners.training.optimizer_step import make_optimizer
from tests.learners.batch.test_packing import samples_of
from tests.learners.tiny_parts import loss_mask, plain_model, save_checkpoint, tiny_model
from tests.learners.training.test_optimizer_step import update

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")
CONFIG = LearnerConfig(weight_decay=0.1, advantage=TurnGaeConfig())
ARCHITECTURES = ("qwen3", "qwen2", "llama")


def loaded(
    folder: Path, *, recompute: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Policy:
    return load_policy(
        str(folder), temperature=1.0, dtype=dtype, recompute_activations=recompute,
        lora_rank=4, lora_alpha=8, seed=seed,
    )  # fmt: skip


def exact_policy(*, architecture: str = "qwen3", tied: bool = True) -> Policy:
    """In float64, with adapters of rank 4."""
    sizes = tiny_model().config.to_dict()
    wanted = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = AutoConfig.for_model(
        architecture,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        **{name: sizes[name] for name in wanted},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(PACKED_CAUSAL)
    add_adapters(model, rank=4, alpha=8, seed=0)
    return Policy(model, temperature=1.0).double()


def stepped(policy: Policy, *, times: int = 2) -> torch.optim.Optimizer:
    optimizer = make_optimizer(policy, config=CONFIG)
    for _ in range(times):
        update(policy, optimizer, rank=0, num_ranks=1)
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_training_the_merged_weights_are_the_base_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    """A bfloat16 learner keeps the frozen weights in bfloat16, which loses nothing of a model published in
    it."""
    tiny_model().bfloat16().save_pretrained(tmp_path)
    merged = full_state_dict(loaded(tmp_path, dtype=dtype), keep=True)
    base = dict(plain_model(str(tmp_path)).named_parameters())
    assert merged.keys() == base.keys()
    assert all(tensor.float().equal(base[name]) for name, tensor in merged.items())


def test_before_training_the_policy_has_the_logprobs_of_the_base(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        base = load_policy(str(tmp_path), temperature=1.0, dtype=dtype, recompute_activations=False)
        with torch.no_grad():
            expected = base(pack(samples_of(2))).logprobs
            assert loaded(tmp_path, dtype=dtype)(pack(samples_of(2))).logprobs.equal(expected)


def test_every_linear_layer_of_the_decoder_has_an_adapter_and_only_adapters_train(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    policy = loaded(tmp_path)
    training = {name for name, p in policy.named_parameters() if p.requires_grad}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in training} == projections
    assert len(training) == 2 * 2 * len(projections)  # layers x (A, B) x projections
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer = stepped(policy)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(training)
    changed = {name for name, p in policy.named_parameters() if not p.equal(before[name])}
    assert changed == training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_have_the_logprobs_of_base_and_adapters(architecture: str, tied: bool, tmp_path: Path):
    """Through the exported folder, loaded by transformers alone, one sample at a time."""
    policy = exact_policy(architecture=architecture, tied=tied)
    untrained = full_state_dict(policy, keep=True)
    stepped(policy)
    state = full_state_dict(policy, keep=True)
    assert sum(not tensor.equal(untrained[name]) for name, tensor in state.items()) == 14
    export_model(tmp_path, policy, tokenizer=None, is_writer=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    samples = samples_of(2)
    with torch.no_grad():
        expected = []
        for sample in samples:
            ids = torch.from_numpy(sample.token_ids).long()
            per_token = model(ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
            expected.append(per_token[torch.from_numpy(loss_mask(sample)[1:])])
        actual = policy(pack(samples)).logprobs
    assert torch.allclose(actual, torch.cat(expected), atol=1e-6)
    assert {name.rpartition(".")[2] for name in state} <= {"weight", "bias"}
    assert "peft" not in (tmp_path / "config.json").read_text()


def test_the_change_is_alpha_over_rank_times_b_a(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    policy = loaded(tmp_path)
    stepped(policy, times=1)
    tensors, name = dict(policy.model.state_dict()), "model.layers.1.mlp.up_proj"
    a, b = (tensors[f"{name}.lora_{side}.default.weight"] for side in "AB")
    expected = tensors[f"{name}.base_layer.weight"] + 8 / 4 * (b @ a)
    assert full_state_dict(policy, keep=True)[f"{name}.weight"].equal(expected)
    sent = full_state_dict(policy, keep=True, dtype=torch.bfloat16)
    assert sent[f"{name}.weight"].equal(expected.bfloat16())  # rounded once, after the merge
    assert {tensor.dtype for tensor in sent.values()} == {torch.bfloat16}
    assert a.shape == (4, 32) and b.shape == (48, 4) and bool(b.any())


def test_adapters_depend_on_the_seed_and_leave_the_random_state_unchanged(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    first, torch_state = loaded(tmp_path), torch.get_rng_state()
    again, other = loaded(tmp_path), loaded(tmp_path, seed=1)
    assert torch.get_rng_state().equal(torch_state)
    a, same, different = (
        p.model.get_parameter("model.layers.0.mlp.up_proj.lora_A.default.weight")
        for p in (first, again, other)
    )
    assert a.equal(same) and not a.equal(different)


def test_recomputed_activations_give_the_adapters_the_same_gradient(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    grads = []
    for recompute in (False, True):
        policy = loaded(tmp_path, recompute=recompute)
        stepped(policy, times=1)  # B begins at zero, and A's gradient with it
        policy(pack(samples_of(1))).logprobs.sum().backward()
        grads.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    plain, recomputed = grads
    assert plain.keys() == recomputed.keys() and len(plain) == 28
    assert all(torch.allclose(grad, recomputed[name], atol=1e-5) for name, grad in plain.items())
    assert all(bool(grad.any()) for grad in plain.values())


def test_a_critic_trains_next_to_the_adapters_and_is_in_the_checkpoint(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path / "model")
    policy = load_policy(
        str(tmp_path / "model"), temperature=1.0, dtype=torch.bfloat16,
        recompute_activations=False, lora_rank=4, has_critic=True,
    )  # fmt: skip
    assert policy.critic is not None
    critic = list(policy.critic.parameters())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in critic)
    optimizer = make_optimizer(policy, config=CONFIG)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 28 + len(critic)
    save_checkpoint(tmp_path / "c", policy, optimizer, Progress(stage="grpo"))
    names = CheckpointFolderReader(tmp_path / "c").read_metadata().state_dict_metadata
    assert sum(name.startswith("model.") for name in names) == 28 + len(critic)
    assert not any("critic" in name for name in full_state_dict(policy, keep=True))


def test_a_checkpoint_contains_only_the_adapters_and_training_resumes_exactly(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path / "model")
    policy = loaded(tmp_path / "model")
    optimizer = stepped(policy, times=1)
    save_checkpoint(tmp_path / "c", policy, optimizer, Progress(stage="grpo"))
    names = CheckpointFolderReader(tmp_path / "c").read_metadata().state_dict_metadata
    weights = [name for name in names if name.startswith("model.")]
    assert len(weights) == 28 and all(".lora_" in name for name in weights)
    update(policy, optimizer, rank=0, num_ranks=1)

    resumed = loaded(tmp_path / "model", seed=5)
    resumed_optimizer = make_optimizer(resumed, config=CONFIG)
    assert load_checkpoint(tmp_path / "c", resumed, resumed_optimizer).stage == "grpo"
    update(resumed, resumed_optimizer, rank=0, num_ranks=1)
    expected = full_state_dict(policy, keep=True)
    assert all(t.equal(expected[name]) for name, t in full_state_dict(resumed, keep=True).items())
