"""Export of the policy's weights: announced shapes, repeated iteration, memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from learners.model.policy import Policy, load_policy
from learners.model.weight_export import WeightExport, full_state_dict
from learners.model.weight_payload import pack_weights
from tests.learners.tiny_parts import tiny_model


def loaded(folder: Path, *, lora_rank: int) -> Policy:
    tiny_model().save_pretrained(folder)
    return load_policy(
        str(folder), temperature=1.0, dtype=torch.bfloat16, recompute_activations=False, lora_rank=lora_rank
    )


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_shapes_are_those_of_the_iterated_weights(
    lora_rank: int, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    """GPU transports lay their buffers out by the announcement."""
    weights = WeightExport(loaded(tmp_path, lora_rank=lora_rank), dtype=dtype)
    came = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]
    assert weights.shapes() == came
    assert {kind for _, kind, _ in came} == {dtype or torch.float32}
    names = [name for name, _, _ in came]
    assert len(set(names)) == len(names)
    assert "lm_head.weight" not in names  # tied
    assert not any("lora" in name or "base_layer" in name for name in names)


def test_a_second_iteration_gives_the_updated_weights(tmp_path: Path) -> None:
    policy = loaded(tmp_path, lora_rank=0)
    weights = WeightExport(policy)
    before = {name: tensor.clone() for name, tensor in weights}
    with torch.no_grad():
        for parameter in policy.own_parameters():
            parameter.add_(1.0)
    for name, tensor in weights:
        assert tensor.equal(before[name] + 1.0), name


def test_packing_holds_one_weight_at_a_time(tmp_path: Path) -> None:
    policy = loaded(tmp_path, lora_rank=2)
    weights = WeightExport(policy)

    def one_at_a_time() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            gathered = torch.empty_like(tensor).copy_(tensor)
            yield name, gathered
            gathered.fill_(torch.nan)  # whoever kept it instead of its bytes would see

    payload, metrics = pack_weights(weights.shapes(), one_at_a_time())
    expected = full_state_dict(policy, keep=True)
    packed = load(payload.tobytes())
    assert packed.keys() == expected.keys()
    assert all(packed[name].equal(tensor) for name, tensor in expected.items())
    assert metrics["learner/weights/num_bytes"] == payload.nbytes
