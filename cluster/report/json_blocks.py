"""JSON documents compressed into a page: base64 of gzip, which browsers unpack (DecompressionStream). No
content can close the script element."""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

SAFETY = 0.97
"""Of what is counted on when something too large is cut: blocks do not shrink quite with their contents."""


def pack(document: object) -> str:
    """A JSON document as a block; the same document gives the same letters."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def unpack(block: str) -> Any:
    """The document of a block."""
    return json.loads(gzip.decompress(base64.b64decode(block)))


def size_of(packed: Mapping[str, str]) -> int:
    """Bytes of these blocks."""
    return sum(map(len, packed.values()))


def fitting(count: int, *, size: int, room: float) -> int:
    """How many of `count` things, which take `size` together, to try in a smaller room; fewer than before."""
    return min(count - 1, int(count * SAFETY * max(0.0, room) / size))
