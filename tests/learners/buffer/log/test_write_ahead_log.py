"""Laws of the journal's files: what a crash leaves is a prefix, and nothing that was promised is missing."""

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
    """An entry for each, with a body of its own."""
    return [to.append("said", facts={"text": text}, body=pa.py_buffer(text.encode() * 3)) for text in texts]


def texts_of(folder: Path) -> list[str]:
    entries = read_log(folder)
    assert all(entry.body.to_pybytes() == entry.facts["text"].encode() * 3 for entry in entries)
    numbers = [entry.number for entry in entries]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    return [entry.facts["text"] for entry in entries]


def kept(done: list["Future[None]"]) -> int:
    """How many were promised."""
    return sum(future.exception(timeout=WAIT_S) is None for future in done)


def test_what_was_written_is_read_again_across_segments_and_lives(folder: Path) -> None:
    for life in ("one", "two"):
        current = opened(folder, segment_bytes=200)
        done = [write(current, f"{life}-{i}")[0].result(WAIT_S) for i in range(5)]
        current.close()
        assert done == [None] * 5
    assert texts_of(folder) == [f"{life}-{i}" for life in ("one", "two") for i in range(5)]
    assert len(segments(folder)) > 3


@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_after_any_crashes_the_journal_is_a_prefix_that_holds_all_that_was_promised(data: st.DataObject):
    """Several lives: each writes some entries, meets a full disk now and then, and ends at some operation.
    The process is killed, which loses nothing that it wrote, or the machine loses its power, and what was not
    synced may be there, cut, or full of holes."""
    operation, rng = st.integers(0, 60), random.Random(data.draw(st.integers(0, 10**6)))
    with tempfile.TemporaryDirectory() as place:
        folder, disk = Path(place) / "journal", CrashingDisk()
        promised: list[str] = []
        written: list[str] = []
        for life in range(data.draw(st.integers(1, 5), label="lives")):
            disk = CrashingDisk(
                dies_at=data.draw(operation, label="dies at"),
                full_at=data.draw(st.frozensets(operation, max_size=4), label="full at"),
                synced=disk.synced,
            )
            current = InlineLog(folder, disk=disk, segment_bytes=data.draw(st.sampled_from([150, 10**6])))
            try:
                found = [entry.facts["text"] for entry in current.recover()]
                assert found[: len(promised)] == promised
                assert found == written[: len(found)]
                promised, written = found, list(found)
                done = []
                for i in range(data.draw(st.integers(0, 8), label="entries")):
                    written.append(f"{life}-{i}")
                    done += write(current, written[-1])
                    if data.draw(st.booleans(), label="written now"):
                        current.write()
                current.write()
                assert all(future.exception() is None for future in done[: kept(done)]), "in their order"
                promised = written[: len(found) + kept(done)]
            except OSError:  # while it recovered: nothing new was promised
                pass
            if data.draw(st.booleans(), label="power is lost"):
                disk.lose_power(rng)
            left = texts_of(folder)
            assert left[: len(promised)] == promised
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


def test_a_bit_that_flips_ends_the_journal_and_what_follows_does_not_come_back(folder: Path) -> None:
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


def test_a_full_disk_is_said_waited_for_and_loses_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = CrashingDisk(full_at=frozenset(range(5, 40)))
    current = opened(folder, disk)
    done = write(current, "a", "b", "c", "d", "e")
    assert kept(done) == 5
    current.close()
    assert texts_of(folder) == ["a", "b", "c", "d", "e"]
    assert current.num_failures > 1 and current.disk_error == ""
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "once when it began to wait, and once when it went on"
    assert "waits for the disk: [Errno 28] No space left on device" in said[0]
    assert said[1].endswith("the write-ahead log writes again")


def test_a_journal_that_is_closed_on_a_full_disk_breaks_its_word_to_nobody(folder: Path) -> None:
    current = opened(folder, CrashingDisk(dies_at=0))
    done = write(current, "a")
    current.close()
    with pytest.raises(LogClosedError, match="the power is off"):
        done[0].result(WAIT_S)
    with pytest.raises(LogClosedError, match="closed"):
        write(current, "b")[0].result(WAIT_S)
    assert texts_of(folder) == []


def test_what_is_not_needed_goes_by_whole_segments(folder: Path) -> None:
    current = opened(folder, segment_bytes=1)
    for text in "abcde":
        write(current, text)[0].result(WAIT_S)
    current.trim(before=3)
    assert [entry.number for entry in read_log(folder)] == [3, 4]
    write(current, "f")[0].result(WAIT_S)
    current.close()
    assert texts_of(folder) == ["d", "e", "f"]


def test_numbers_that_a_checkpoint_knows_are_never_given_again(folder: Path) -> None:
    current = opened(folder)
    write(current, "a")[0].result(WAIT_S)
    current.close()
    again = opened(folder)
    again.skip_to(7)
    write(again, "b")[0].result(WAIT_S)
    again.close()
    assert [entry.number for entry in read_log(folder)] == [7]


def test_a_format_of_later_is_refused_in_one_line(folder: Path) -> None:
    folder.mkdir()
    frame = frame_of(LogEntry(number=0, kind="format", facts={"format": 2}))
    (folder / "entries-000000000000.log").write_bytes(b"".join(bytes(part) for part in frame))
    with pytest.raises(LogError, match="format=2 of a later version, and this one reads up to") as error:
        read_log(folder)
    assert "\n" not in str(error.value)


def test_the_header_is_json_that_anybody_can_read(folder: Path) -> None:
    _, header, body = frame_of(LogEntry(number=5, kind="taken", facts={"group_ids": [1]}))
    assert json.loads(header) == {"number": 5, "kind": "taken", "group_ids": [1]}
    assert body.size == 0
