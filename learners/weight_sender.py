"""Weights as one payload for the engines: the bytes of a safetensors file. Knows no Ray and no engine."""

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WIRE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": None}
"""Engines' number formats; "auto": whatever the weights are kept in."""
_FORMATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}
"""The number formats that a model's weights come in, as safetensors calls them."""
_ALIGNMENT = 8


def pack_weights(state: Mapping[str, torch.Tensor]) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Packs a Hugging Face state dict into safetensors bytes, and says what that cost.

    A tensor that shares its memory with an earlier one (a tied `lm_head.weight`) is sent once, under the
    earlier name: whoever loads it ties it again. Returns (payload of uint8 [num_bytes], metrics); Ray stores
    the array unpickled. Written by hand, straight into the payload: `safetensors.torch.save` holds the whole
    of it twice.
    """
    start = time.perf_counter()
    tensors = _each_once(state)
    header = _header(tensors)
    payload = np.empty(len(header) + sum(tensor.nbytes for tensor in tensors.values()), np.uint8)
    payload[: len(header)] = np.frombuffer(header, np.uint8)
    end = len(header)
    for tensor in tensors.values():
        begin, end = end, end + tensor.nbytes
        payload[begin:end] = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return payload, {
        "learner/weights/num_bytes": float(payload.nbytes),
        "time/pack_weights_s": time.perf_counter() - start,
    }


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Its own length, then what is where, filled up with spaces so that the data begins aligned."""
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _FORMATS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _each_once(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each piece of memory once, wide formats first, which keeps all of them aligned."""
    sent: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            seen.add(place)
            sent[name] = tensor.detach()
    return dict(sorted(sent.items(), key=lambda item: -item[1].element_size()))
