"""Looks for secrets in every byte that a run leaves, through whatever the bytes are packed in."""

import base64
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from learners.buffer.log.segments import FRAME, MAGIC

BLOCK = re.compile(rb"[A-Za-z0-9+/]{200,}={0,2}")
"""Base64 in a page: the report carries its rows so."""


def leaks(folder: Path, canaries: Mapping[str, str]) -> list[str]:
    """`file: name`, for each secret (name to value) that stands in a file or in its path, as it is or as
    base64, hex, or in a URL."""
    spelled = {name: _spellings(value) for name, value in canaries.items()}
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        pieces = [str(path.relative_to(folder)).encode()]
        if path.is_file() and not path.is_symlink():
            pieces += unpacked(path.read_bytes(), name=path.name)
        for name, spellings in spelled.items():
            if any(spelling in piece for piece in pieces for spelling in spellings):
                found.append(f"{path.relative_to(folder)}: {name}")
    return found


def unpacked(data: bytes, *, name: str = "") -> Iterator[bytes]:
    """The bytes as they are, and all that is packed in them."""
    yield data
    if name.endswith(".wandb"):
        yield _wandb_records(data)
    elif data[:4] == MAGIC:
        yield from _journal_values(data)
    elif data[:4] == b"PAR1":
        yield _parquet_values(data)
    elif data[:2] == b"\x1f\x8b":
        yield from unpacked(gzip.decompress(data))
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from unpacked(archive.read(member), name=member)
    elif data[:4] == b"\x89PNG":
        yield _png_texts(data)
    if b"<html" in data[:1000].lower():
        for block in BLOCK.findall(data):
            inner = base64.b64decode(block + b"=" * (-len(block) % 4))
            if inner[:2] == b"\x1f\x8b":
                yield gzip.decompress(inner)


def _spellings(value: str) -> list[bytes]:
    """Of base64 the three ways in which it may stand in a longer text, without their ends."""
    plain = value.encode()
    in_base64 = [base64.b64encode(b"x" * shift + plain)[4 if shift else 0 : -4] for shift in range(3)]
    return [plain, plain[::-1], plain.hex().encode(), quote(value, safe="").encode(), *in_base64]


def _parquet_values(data: bytes) -> bytes:
    table = pq.read_table(pa.BufferReader(data))
    return repr((table.schema.metadata, *(column.to_pylist() for column in table.columns))).encode()


def _journal_values(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + FRAME.size <= len(data):
        magic, _, num_header, num_body = FRAME.unpack_from(data, at)
        if magic != MAGIC:
            return  # cut off by a crash
        start = at + FRAME.size + num_header
        at = start + num_body
        if num_body:
            with pa.ipc.open_stream(pa.BufferReader(data[start:at])) as reader:
                table = reader.read_all()
            yield repr((table.schema.metadata, *(column.to_pylist() for column in table.columns))).encode()


def _png_texts(data: bytes) -> bytes:
    """Compressed text chunks; what is drawn is not read."""
    texts, at = b"", 8
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"zTXt":
            texts += zlib.decompress(body.partition(b"\0")[2][1:])
        at += 12 + size
    return texts


def _wandb_records(data: bytes) -> bytes:
    """A .wandb file is a log of blocks; a record may go over several, each part with a header of 7 bytes
    before it. The first block has a header of its own, of as many."""
    block_size, header = 32768, 7
    records, at = b"", header
    while at + header <= len(data):
        left = block_size - at % block_size
        if left < header:
            at += left
            continue
        size = int.from_bytes(data[at + 4 : at + 6], "little")
        records += data[at + header : at + header + size]
        at += header + size
    return records
