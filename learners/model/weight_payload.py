"""Weight payload for the engines: the policy's weights as the bytes of one safetensors file. No Ray, no
engine."""

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
"""Number formats of the engines; "auto": that of the stored weights."""
_FORMATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}
"""Number formats of weights and their names in safetensors."""
_ALIGNMENT = 8


def pack_weights(
    shapes: Sequence[Shape], weights: Iterable[tuple[str, torch.Tensor]]
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Packs weights into safetensors bytes, one at a time as they are gathered.

    `weights` yields the weights of `shapes`, in any order. Returns (payload, uint8 [num_bytes], and metrics);
    Ray stores the array without pickling. Written into the payload directly, so that besides it only one
    weight is in memory; `safetensors.torch.save` would hold all of them twice.
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
    """The header: its length, then the offsets, padded with spaces so that the data is aligned; and begin and
    end of each weight in the payload. Wide formats come first, which keeps all weights aligned."""
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
