"""Weight payload for the engines: the policy's weights as the bytes of one safetensors file. Knows no Ray and
no engine."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Shape = tuple[str, torch.dtype, tuple[int, ...]]
"""Name, number format and size of one weight."""
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


def pack(
    shapes: Sequence[Shape], weights: Iterable[tuple[str, torch.Tensor]]
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Packs weights into safetensors bytes as they come, and says what that cost.

    `weights` yields what `shapes` says, in any order. Returns (payload of uint8 [num_bytes], metrics); Ray
    stores the array unpickled. Written by hand, straight into the payload: beside it no more than one weight
    is held, where `safetensors.torch.save` holds the whole of them twice.
    """
    start = time.perf_counter()
    header, places = _header(shapes)
    payload = np.empty(max((end for _, end in places.values()), default=len(header)), np.uint8)
    payload[: len(header)] = np.frombuffer(header, np.uint8)
    for name, tensor in weights:
        begin, end = places[name]
        payload[begin:end] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return payload, {
        "learner/weights/num_bytes": float(payload.nbytes),
        "time/pack_weights_s": time.perf_counter() - start,
    }


def _header(shapes: Sequence[Shape]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Its own length, then what is where, filled up with spaces so that the data begins aligned; and where
    each weight's bytes begin and end in the payload. Wide formats first, which keeps all of them aligned."""
    entries: dict[str, Any] = {}
    end = 0
    for name, dtype, shape in sorted(shapes, key=lambda one: -one[1].itemsize):
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": _FORMATS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {
        name: (len(header) + entry["data_offsets"][0], len(header) + entry["data_offsets"][1])
        for name, entry in entries.items()
    }
