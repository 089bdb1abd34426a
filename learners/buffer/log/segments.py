"""File format of the write-ahead log: checksummed frames in segment files that are named by their first
entry. Knows no entry's meaning.

A frame is magic, the lengths of header and body, a CRC-32 of all that follows it, a JSON header and a body of
any bytes. Entries are numbered from 0 on; what is read is a prefix of what was written, whatever a crash left
of it.
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
"""Of the entries that are written, as the first one of each segment says."""
MAGIC = b"URLJ"
FRAME = struct.Struct("<4sIIQ")
"""Magic, CRC-32, bytes of the header, bytes of the body."""
LENGTHS = struct.Struct("<IQ")
FORMAT_KIND = "format"
MOST_HEADER_BYTES = 2**28
"""What a length that is beyond says is noise."""
EMPTY = pa.py_buffer(b"")


class LogError(RuntimeError):
    """A journal that this version cannot go on with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """One event, as it was written."""

    number: int
    """Its place in the order of all events, from 0 on."""
    kind: str
    facts: Mapping[str, Any]
    """JSON; of an entry that is written, also dataclasses of such."""
    body: pa.Buffer = field(default_factory=lambda: EMPTY, repr=False)
    """Of a read entry: a part of its file, mapped into memory."""


def frame_of(entry: LogEntry) -> tuple[bytes, bytes, pa.Buffer]:
    """The parts of an entry's frame, to be written one after the other."""
    facts = {"number": entry.number, "kind": entry.kind, **entry.facts}
    header = json.dumps(facts, default=_as_json).encode()
    lengths = LENGTHS.pack(len(header), entry.body.size)
    crc = zlib.crc32(memoryview(entry.body), zlib.crc32(header, zlib.crc32(lengths)))
    return FRAME.pack(MAGIC, crc, len(header), entry.body.size), header, entry.body


def _as_json(value: object) -> object:
    """Records as objects, so that they are only taken apart in the thread that writes."""
    if is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    raise TypeError(f"{type(value).__name__} is no JSON")


def segment_name(first: int) -> str:
    """The file that begins with entry `first`."""
    return f"entries-{first:012d}.log"


def first_number(path: Path) -> int:
    """Of a segment, by its name."""
    return int(path.stem.removeprefix("entries-"))


def segments(folder: Path) -> list[Path]:
    """All segments, in order."""
    return sorted(folder.glob("entries-*.log"))


def read_journal(folder: Path) -> list[LogEntry]:
    """All entries that can be believed, in order, without gap: the numbers follow each other. What is there
    twice, since it was written again, is read once. Raises JournalError for a format of later."""
    entries: list[LogEntry] = []
    for path in segments(folder):
        expected = entries[-1].number + 1 if entries else first_number(path)
        if first_number(path) > expected:
            break  # what led there is lost, and so nothing that follows from it may count
        for entry in _read_segment(path):
            if entry.kind == FORMAT_KIND:
                _check_format(path, entry)
            elif entry.number == expected:
                entries.append(entry)
                expected += 1
    return entries


def check_format(folder: Path) -> None:
    """Raises JournalError for a journal that only a later version reads."""
    for path in segments(folder):
        entry = next(_read_segment(path), None)
        if entry is not None and entry.kind == FORMAT_KIND:
            _check_format(path, entry)


def _read_segment(path: Path) -> Iterator[LogEntry]:
    """Its frames up to the first that is not whole."""
    if not path.stat().st_size:
        return
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()
    at = 0
    while (entry := _read_frame(content, at)) is not None:
        found, at = entry
        yield found


def _read_frame(content: pa.Buffer, at: int) -> tuple[LogEntry, int] | None:
    """The entry whose frame begins there, and the place after it; None where there is none, or not all."""
    start = at + FRAME.size
    if start > content.size:
        return None
    magic, crc, num_header, num_body = FRAME.unpack(content.slice(at, FRAME.size).to_pybytes())
    if magic != MAGIC or num_header > MOST_HEADER_BYTES or num_header + num_body > content.size - start:
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
            "go on with the version that wrote it"
        )


class LogDisk:
    """The file system, as far as a journal needs it. Raises OSError."""

    def create(self, path: Path) -> BinaryIO:
        """A new file, whose name is on the disk when this returns."""
        new = not path.parent.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb", buffering=0)
        self.sync_folder(path.parent)
        if new:
            self.sync_folder(path.parent.parent)
        return file

    def write(self, file: BinaryIO, part: bytes | pa.Buffer) -> None:
        """All of it: a write of a file may take less."""
        left = memoryview(part)
        while left:
            left = left[file.write(left) :]

    def sync(self, file: BinaryIO) -> None:
        """What was written survives the machine."""
        os.fsync(file.fileno())

    def sync_path(self, path: Path) -> None:
        """As `sync`, of a file that another process wrote."""
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """The names in it survive the machine."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
