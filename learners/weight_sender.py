"""Weights as one payload for the engines: the bytes of a safetensors file. Knows no Ray and no engine."""

import time
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pack_weights(
    state: Mapping[str, torch.Tensor], *, dtype: Literal["float32", "bfloat16", "auto"]
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Packs a Hugging Face state dict into safetensors bytes, and says what that cost.

    Floating-point tensors are sent as `dtype`, the engine's own ("auto": as they are). A tensor that shares
    its memory with an earlier one (a tied `lm_head.weight`) is sent once, under the earlier name: whoever
    loads it ties it again. Returns (payload of uint8 [num_bytes], metrics); Ray stores the array unpickled.
    """
    start = time.perf_counter()
    payload = np.frombuffer(save(_unshared(state, dtype=_DTYPES.get(dtype))), dtype=np.uint8)
    return payload, {
        "learner/weights/num_bytes": float(payload.nbytes),
        "time/pack_weights_s": time.perf_counter() - start,
    }


def _unshared(state: Mapping[str, torch.Tensor], *, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The state on CPU, contiguous, in the wire's dtype, each piece of memory once."""
    sent: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place in seen:
            continue
        seen.add(place)
        wire_dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        sent[name] = tensor.detach().to(device="cpu", dtype=wire_dtype).contiguous()
    return sent
