"""File format of the write-ahead log: checksummed frames in segment files, each named by its first entry.
Knows nothing of what entries mean.

A frame is magic, a CRC-32 of all that follows it, the lengths of header and body, a JSON header and a body of
any bytes. Entries are numbered from 0. After any crash, the entries read are a prefix of those written.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

FORMAT = 1
"""Version of the entries, in the first one of each segment."""
MAGIC = b"URLJ"
FRAME = struct.Struct("<4sIIQ")
"""Magic, CRC-32, bytes of the header, bytes of the body."""
LENGTHS = struct.Struct("<IQ")
FORMAT_KIND = "format"
MAX_HEADER_BYTES = 2**28
"""A greater length is garbage."""
EMPTY = pa.py_buffer(b"")


class LogError(RuntimeError):
    """A log that this version cannot read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """One event in the log."""

    number: int
    """Position in the order of all events, from 0."""
    kind: str
    facts: Mapping[str, Any]
    """JSON; in an entry to write also dataclasses."""
    body: pa.Buffer = field(default_factory=lambda: EMPTY, repr=False)
    """In an entry that was read: a part of its memory-mapped file."""


def frame_of(entry: LogEntry) -> tuple[bytes, bytes, pa.Buffer]:
    """The parts of an entry's frame, in order."""
    facts = {"number": entry.number, "kind": entry.kind, **entry.facts}
    header = json.dumps(facts, default=_as_json).encode()
    lengths = LENGTHS.pack(len(header), entry.body.size)
    crc = zlib.crc32(memoryview(entry.body), zlib.crc32(header, zlib.crc32(lengths)))
    return FRAME.pack(MAGIC, crc, len(header), entry.body.size), header, entry.body


def _as_json(value: object) -> object:
    """Dataclasses as objects; called in the writing thread."""
    if is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    raise TypeError(f"{type(value).__name__} is no JSON")


def segment_name(first: int) -> str:
    """Name of the file that begins with entry `first`."""
    return f"entries-{first:012d}.log"


def first_number(path: Path) -> int:
    """Number of a segment's first entry, from its name."""
    return int(path.stem.removeprefix("entries-"))


def segments(folder: Path) -> list[Path]:
    """All segments, in order."""
    return sorted(folder.glob("entries-*.log"))


def read_log(folder: Path) -> list[LogEntry]:
    """All valid entries in order, up to the first gap in their numbers. An entry that was written twice,
    after a failed write, is read once. Raises LogError for a later format."""
    entries: list[LogEntry] = []
    for path in segments(folder):
        expected = entries[-1].number + 1 if entries else first_number(path)
        if first_number(path) > expected:
            break  # entries before it are lost, so that it must not count
        for entry in _read_segment(path):
            if entry.kind == FORMAT_KIND:
                _check_format(path, entry)
            elif entry.number == expected:
                entries.append(entry)
                expected += 1
    return entries


def check_format(folder: Path) -> None:
    """Raises LogError for a log that only a later version can read."""
    for path in segments(folder):
        entry = next(_read_segment(path), None)
        if entry is not None and entry.kind == FORMAT_KIND:
            _check_format(path, entry)


def _read_segment(path: Path) -> Iterator[LogEntry]:
    """The segment's entries up to the first incomplete frame."""
    if not path.stat().st_size:
        return
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()
    at = 0
    while (entry := _read_frame(content, at)) is not None:
        found, at = entry
        yield found


def _read_frame(content: pa.Buffer, at: int) -> tuple[LogEntry, int] | None:
    """The entry of the frame at this offset, and the offset after it; None without a complete frame."""
    start = at + FRAME.size
    if start > content.size:
        return None
    magic, crc, num_header, num_body = FRAME.unpack(content.slice(at, FRAME.size).to_pybytes())
    if magic != MAGIC or num_header > MAX_HEADER_BYTES or num_header + num_body > content.size - start:
        return None
    header = content.slice(start, num_header).to_pybytes()
    body = content.slice(start + num_header, num_body)
    lengths = LENGTHS.pack(num_header, num_body)
    if zlib.crc32(memoryview(body), zlib.crc32(header, zlib.crc32(lengths))) != crc:
        return None
    facts = json.loads(header)
    number, kind = facts.pop("number"), facts.pop("kind")
    return LogEntry(number=number, kind=kind, facts=facts, body=body), start + num_header + num_body


def _check_format(path: Path, entry: LogEntry) -> None:
    if entry.facts["format"] > FORMAT:
        raise LogError(
            f"{path}: format={entry.facts['format']} of a later version, and this one reads up to {FORMAT}: "
            "resume with the version that wrote it"
        )


class LogDisk:
    """The file operations of a write-ahead log. They raise OSError."""

    def create(self, path: Path) -> BinaryIO:
        """A new file, whose name is on disk when this returns."""
        new = not path.parent.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb", buffering=0)
        self.sync_folder(path.parent)
        if new:
            self.sync_folder(path.parent.parent)
        return file

    def write(self, file: BinaryIO, part: bytes | pa.Buffer) -> None:
        """Writes all of `part`: `file.write` may write less."""
        left = memoryview(part)
        while left:
            left = left[file.write(left) :]

    def sync(self, file: BinaryIO) -> None:
        """Makes the file's content durable."""
        os.fsync(file.fileno())

    def sync_path(self, path: Path) -> None:
        """`sync` for a file that another process wrote."""
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Makes the names in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
