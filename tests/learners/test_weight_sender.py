"""Weights as one payload."""

import torch
from safetensors.torch import load

from learners.weight_sender import pack_weights


def test_a_payload_holds_the_state_byte_for_byte() -> None:
    state = {"a": torch.randn(3, 5), "b": torch.arange(4)}
    payload, metrics = pack_weights(state, dtype="float32")
    loaded = load(payload.tobytes())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert metrics["learner/weights/num_bytes"] == payload.nbytes


def test_tied_tensors_are_sent_once_under_the_first_name() -> None:
    embedding = torch.nn.Parameter(torch.randn(8, 2))
    payload, _ = pack_weights({"embed.weight": embedding, "lm_head.weight": embedding}, dtype="float32")
    assert list(load(payload.tobytes())) == ["embed.weight"]


def test_only_floating_point_tensors_take_the_wire_dtype() -> None:
    state = {"a": torch.randn(2, 3).T, "b": torch.arange(4)}  # a transposed view is not contiguous
    loaded = load(pack_weights(state, dtype="bfloat16")[0].tobytes())
    assert loaded["a"].dtype == torch.bfloat16 and torch.equal(loaded["a"], state["a"].to(torch.bfloat16))
    assert torch.equal(loaded["b"], state["b"])
    assert load(pack_weights(state, dtype="auto")[0].tobytes())["a"].dtype == torch.float32
