"""Files of the write-ahead log: after a crash a prefix is left, and no confirmed entry is missing."""

import json
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.buffer.log import write_ahead_log
from learners.buffer.log.segments import LogDisk, LogEntry, LogError, frame_of, read_log, segments
from learners.buffer.log.write_ahead_log import LogClosedError, WriteAheadLog
from tests.effort import examples
from tests.learners.fake_disk import CrashingDisk, InlineLog

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_ahead_log, "RETRY_S", 0.001)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path) / "journal"


def opened(folder: Path, disk: LogDisk | None = None, *, segment_bytes: int = 2**20) -> WriteAheadLog:
    found = WriteAheadLog(folder, disk=disk, segment_bytes=segment_bytes)
    found.recover()
    return found


def write(to: WriteAheadLog, *texts: str) -> list["Future[None]"]:
    """One entry per text, with a body."""
    return [to.append("said", facts={"text": text}, body=pa.py_buffer(text.encode() * 3)) for text in texts]


def texts_of(folder: Path) -> list[str]:
    entries = read_log(folder)
    assert all(entry.body.to_pybytes() == entry.facts["text"].encode() * 3 for entry in entries)
    numbers = [entry.number for entry in entries]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    return [entry.facts["text"] for entry in entries]


def kept(done: list["Future[None]"]) -> int:
    """Number of confirmed entries."""
    return sum(future.exception(timeout=WAIT_S) is None for future in done)


def test_entries_are_read_across_segments_and_processes(folder: Path) -> None:
    for process in ("one", "two"):
        current = opened(folder, segment_bytes=200)
        done = [write(current, f"{process}-{i}")[0].result(WAIT_S) for i in range(5)]
        current.close()
        assert done == [None] * 5
    assert texts_of(folder) == [f"{process}-{i}" for process in ("one", "two") for i in range(5)]
    assert len(segments(folder)) > 3


@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_after_any_crashes_the_log_is_a_prefix_with_all_confirmed_entries(data: st.DataObject):
    """Several processes: each writes some entries, may find the disk full, and ends at some operation. The
    process is killed, which loses nothing written, or the machine loses power, and unsynced bytes may be
    complete, cut, or full of holes."""
    operation, rng = st.integers(0, 60), random.Random(data.draw(st.integers(0, 10**6)))
    with tempfile.TemporaryDirectory() as place:
        folder, disk = Path(place) / "journal", CrashingDisk()
        confirmed: list[str] = []
        written: list[str] = []
        for process in range(data.draw(st.integers(1, 5), label="processes")):
            disk = CrashingDisk(
                dies_at=data.draw(operation, label="dies at"),
                full_at=data.draw(st.frozensets(operation, max_size=4), label="full at"),
                synced=disk.synced,
            )
            current = InlineLog(folder, disk=disk, segment_bytes=data.draw(st.sampled_from([150, 10**6])))
            try:
                found = [entry.facts["text"] for entry in current.recover()]
                assert found[: len(confirmed)] == confirmed
                assert found == written[: len(found)]
                confirmed, written = found, list(found)
                done = []
                for i in range(data.draw(st.integers(0, 8), label="entries")):
                    written.append(f"{process}-{i}")
                    done += write(current, written[-1])
                    if data.draw(st.booleans(), label="written now"):
                        current.write()
                current.write()
                assert all(future.exception() is None for future in done[: kept(done)]), "in their order"
                confirmed = written[: len(found) + kept(done)]
            except OSError:  # during recovery: nothing new was confirmed
                pass
            if data.draw(st.booleans(), label="power is lost"):
                disk.lose_power(rng)
            left = texts_of(folder)
            assert left[: len(confirmed)] == confirmed
            assert left == written[: len(left)]


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_a_torn_tail_is_cut_at_any_byte(folder: Path, cut: int) -> None:
    current = opened(folder)
    write(current, "first")[0].result(WAIT_S)
    whole = segments(folder)[0].stat().st_size
    write(current, "second")[0].result(WAIT_S)
    current.close()
    path = segments(folder)[0]
    content = path.read_bytes()
    length = min(whole + cut, len(content))
    path.write_bytes(content[:length])
    assert texts_of(folder) == (["first", "second"] if length == len(content) else ["first"])


def test_a_flipped_bit_ends_the_log_and_later_entries_stay_void(folder: Path) -> None:
    current = opened(folder, segment_bytes=1)  # a segment for each
    for text in ("a", "b", "c"):
        write(current, text)[0].result(WAIT_S)
    current.close()
    path = segments(folder)[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert texts_of(folder) == ["a"]
    again = opened(folder, segment_bytes=1)
    write(again, "d")[0].result(WAIT_S)
    again.close()
    assert texts_of(folder) == ["a", "d"]


def test_a_full_disk_is_logged_retried_and_loses_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = CrashingDisk(full_at=frozenset(range(5, 40)))
    current = opened(folder, disk)
    done = write(current, "a", "b", "c", "d", "e")
    assert kept(done) == 5
    current.close()
    assert texts_of(folder) == ["a", "b", "c", "d", "e"]
    assert current.num_failures > 1 and current.disk_error == ""
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2, "once when it starts to wait, and once when it writes again"
    assert "waits for the disk: [Errno 28] No space left on device" in lines[0]
    assert lines[1].endswith("the write-ahead log writes again")


def test_a_log_that_is_closed_on_a_full_disk_confirms_no_entry(folder: Path) -> None:
    current = opened(folder, CrashingDisk(dies_at=0))
    done = write(current, "a")
    current.close()
    with pytest.raises(LogClosedError, match="the power is off"):
        done[0].result(WAIT_S)
    with pytest.raises(LogClosedError, match="closed"):
        write(current, "b")[0].result(WAIT_S)
    assert texts_of(folder) == []


def test_unneeded_entries_are_deleted_by_whole_segments(folder: Path) -> None:
    current = opened(folder, segment_bytes=1)
    for text in "abcde":
        write(current, text)[0].result(WAIT_S)
    current.trim(before=3)
    assert [entry.number for entry in read_log(folder)] == [3, 4]
    write(current, "f")[0].result(WAIT_S)
    current.close()
    assert texts_of(folder) == ["d", "e", "f"]


def test_numbers_that_a_checkpoint_names_are_never_reused(folder: Path) -> None:
    current = opened(folder)
    write(current, "a")[0].result(WAIT_S)
    current.close()
    again = opened(folder)
    again.skip_to(7)
    write(again, "b")[0].result(WAIT_S)
    again.close()
    assert [entry.number for entry in read_log(folder)] == [7]


def test_a_later_format_is_refused_in_one_line(folder: Path) -> None:
    folder.mkdir()
    frame = frame_of(LogEntry(number=0, kind="format", facts={"format": 2}))
    (folder / "entries-000000000000.log").write_bytes(b"".join(bytes(part) for part in frame))
    with pytest.raises(LogError, match="format=2 of a later version, and this one reads up to") as error:
        read_log(folder)
    assert "\n" not in str(error.value)


def test_the_header_is_json(folder: Path) -> None:
    _, header, body = frame_of(LogEntry(number=5, kind="taken", facts={"group_ids": [1]}))
    assert json.loads(header) == {"number": 5, "kind": "taken", "group_ids": [1]}
    assert body.size == 0
