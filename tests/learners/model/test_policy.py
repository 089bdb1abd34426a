"""The policy's logprobs against the plain model's."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learners.batch.packing import pack
from learners.model import policy as policy_module
from learners.model.policy import PACKED_CAUSAL, Policy, load_policy
from learners.model.weight_export import full_state_dict
from tests.learners.batch.test_packing import samples_of
from tests.learners.tiny_parts import loss_mask, plain_model, tiny_model, tiny_policy


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama"])
def test_packed_logprobs_are_those_of_the_plain_model_at_the_sampling_temperature(architecture: str):
    sizes = tiny_model().config.to_dict()
    wanted = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = AutoConfig.for_model(
        architecture, num_key_value_heads=2, **{name: sizes[name] for name in wanted}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double()
    samples = samples_of(2)
    with torch.no_grad():
        model.set_attn_implementation(PACKED_CAUSAL)
        result = Policy(model, temperature=0.7)(pack(samples))
        expected = []
        model.set_attn_implementation("eager")
        for sample in samples:
            ids = torch.from_numpy(sample.token_ids).long()
            log_probs = (model(ids[None]).logits[0] / 0.7).log_softmax(-1)
            per_token = log_probs[:-1].gather(1, ids[1:, None])[:, 0]
            expected.append(per_token[torch.from_numpy(loss_mask(sample)[1:])])
    assert torch.allclose(result.logprobs, torch.cat(expected), atol=1e-9)


def test_chunks_of_the_head_change_neither_logprobs_nor_gradients(monkeypatch: pytest.MonkeyPatch):
    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        policy = tiny_policy()
        result = policy(pack(samples_of(2)))
        result.logprobs.square().sum().backward()
        assert policy.head.grad is not None
        return result.logprobs.detach(), result.entropies, policy.head.grad

    whole = run()
    monkeypatch.setattr(policy_module, "LOGITS_AT_ONCE", 7 * 50)
    for one, chunked in zip(whole, run(), strict=True):
        assert torch.allclose(one, chunked, atol=1e-9)


def test_entropy_of_a_uniform_distribution_is_the_log_of_the_vocabulary():
    policy = tiny_policy()
    with torch.no_grad():
        policy.head.zero_()
        result = policy(pack(samples_of(1)))
    assert result.entropies.tolist() == pytest.approx(
        [torch.tensor(50.0).log().item()] * len(result.entropies)
    )


def test_a_folder_loads_with_float32_weights_and_exports_tied_ones_once(tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path)
    policy = load_policy(
        str(tmp_path),
        temperature=1.0,
        dtype=torch.float32,
        recompute_activations=False,
    )
    state = full_state_dict(policy, keep=True)
    expected = dict(plain_model(str(tmp_path)).named_parameters())
    assert state.keys() == expected.keys()
    assert "lm_head.weight" not in state
    assert all(
        tensor.dtype == torch.float32 and tensor.equal(expected[name]) for name, tensor in state.items()
    )


def test_recomputed_activations_give_the_same_gradient(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    grads = []
    for recompute in (False, True):
        policy = load_policy(
            str(tmp_path),
            temperature=1.0,
            dtype=torch.float32,
            recompute_activations=recompute,
        )
        policy(pack(samples_of(1))).logprobs.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-5)


def test_bfloat16_stays_near_float32():
    samples = samples_of(2)
    model = tiny_model()
    model.set_attn_implementation(PACKED_CAUSAL)
    with torch.no_grad():
        exact = Policy(model, temperature=1.0)(pack(samples)).logprobs
        rough = Policy(model, temperature=1.0, dtype=torch.bfloat16)(pack(samples)).logprobs
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().mean() < 0.1


def test_a_model_with_sliding_layers_is_refused():
    model = tiny_model()
    model.set_attn_implementation(PACKED_CAUSAL)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="only full causal attention can train"):
        Policy(model, temperature=1.0)
