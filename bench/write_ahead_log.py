"""Benchmark of the write-ahead log: milliseconds until a delivery is on disk, alone and with others at the
same time, and the time it takes of the event loop. `python -m bench.write_ahead_log`."""

import os
import sys
import tempfile
import time
from concurrent.futures import wait
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from bench.harness import interleaved, run
from bench.result_rows import Row
from learners.buffer.log.write_ahead_log import WriteAheadLog

GROUP_BYTES = 128 * 2**10
"""Of one group's table: 8 dialogues of 5 turns."""
IN_FLIGHT = (1, 16, 64)
"""Deliveries that come while one sync is under way share the next."""


def _body() -> pa.Buffer:
    return pa.py_buffer(np.random.default_rng(0).bytes(GROUP_BYTES))


def _bare_ms(folder: Path) -> float:
    """One write and one sync of a group's bytes, without a journal."""
    body = bytes(_body())
    with (folder / "bare").open("wb", buffering=0) as file:
        began = time.perf_counter()
        file.write(body)
        os.fsync(file.fileno())
        return 1e3 * (time.perf_counter() - began)


def _journal_ms(folder: Path, *, in_flight: int) -> float:
    """Until each of so many deliveries that come together is on the disk, per delivery."""
    journal, body = WriteAheadLog(folder / f"journal-{in_flight}"), _body()
    journal.recover()
    journal.append("finished", facts={}, body=body).result()
    began = time.perf_counter()
    wait([journal.append("finished", facts={}, body=body) for _ in range(in_flight)])
    took = time.perf_counter() - began
    journal.close()
    return 1e3 * took / in_flight


def _append_us(folder: Path) -> float:
    """What the event loop spends on an entry."""
    journal, body = WriteAheadLog(folder / "append"), _body()
    journal.recover()
    began = time.perf_counter()
    done = [journal.append("finished", facts={"group_ids": [1, 2, 3]}, body=body) for _ in range(50)]
    took = time.perf_counter() - began
    wait(done)
    journal.close()
    return 1e6 * took / len(done)


def measure(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        folder = Path(place)
        cases = {
            "one sync of the bare disk": lambda: _bare_ms(folder),
            **{
                f"{num} deliveries together": lambda num=num: _journal_ms(folder, in_flight=num)
                for num in IN_FLIGHT
            },
            "on the event loop": lambda: _append_us(folder) / 1e3,
        }
        values = interleaved(cases, runs=3 if quick else 9)
    return [
        Row(
            bench="write_ahead_log",
            case=f"{case}, {GROUP_BYTES // 2**10} KiB each",
            metric="time of a delivery",
            value=median(numbers),
            unit="ms",
            runs=len(numbers),
        )
        for case, numbers in values.items()
    ]


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
