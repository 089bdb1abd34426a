"""Weight payload: bytes of the packed state, and memory of packing."""

import tracemalloc

import torch
from safetensors.torch import load

from learners.model.weight_payload import Shape, pack_weights


def shapes_of(state: dict[str, torch.Tensor]) -> list[Shape]:
    return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]


def test_a_payload_contains_the_state_byte_for_byte() -> None:
    state = {
        "a": torch.randn(3, 5).bfloat16(),  # 30 bytes: what follows must be aligned all the same
        "b": torch.arange(4),
        "c": torch.randn(2, 3).T,  # a transposed view is not contiguous
        "d": torch.tensor(2.5, dtype=torch.float64),
        'a "name" of é': torch.randn(7).half(),
        "none": torch.zeros(0, 4),
    }
    payload, metrics = pack_weights(shapes_of(state), state.items())
    loaded = load(payload.tobytes())
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    assert metrics["learner/weights/num_bytes"] == payload.nbytes


def test_packing_allocates_the_payload_only() -> None:
    state = {f"layer.{i}": torch.ones(2**18) for i in range(8)}
    tracemalloc.start()  # NumPy and bytes; torch's own memory is not counted, and none is taken
    try:
        payload, _ = pack_weights(shapes_of(state), state.items())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert payload.nbytes > 8 * 2**20
    assert peak < 1.05 * payload.nbytes
