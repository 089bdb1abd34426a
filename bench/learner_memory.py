"""Peak memory of one step of a learner above what was resident before it: one process for each learner, so
that neither counts the other's memory."""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.learner_models import HEAD, SHAPES, Shape, build, make_trl, num_places, samples_of
from bench.learner_vs_trl import OurSide
from bench.result_rows import ROOT

TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """By how much a step's peak stands above what is resident before it, MiB."""

    shape: str
    ours_mib: float
    trl_mib: float
    full_logits_mib: float
    """One float32 copy of the logits of every place in TRL's rows, which neither side makes."""


def memory(shape: Shape) -> Memory:
    """Both sides, one after the other."""
    grown = {}
    for side in ("ours", "trl"):
        command = [
            sys.executable,
            "-m",
            "bench.learner_memory",
            side,
            shape.name,
            str(torch.get_num_threads()),
        ]
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
        done = subprocess.run(
            command,
            cwd=ROOT.parent,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        )
        grown[side] = json.loads(done.stdout.splitlines()[-1])
    return Memory(
        shape=shape.name,
        ours_mib=grown["ours"]["mib"],
        trl_mib=grown["trl"]["mib"],
        full_logits_mib=grown["trl"]["num_places"] * shape.vocab_size * 4 / 2**20,
    )


def report_memory_of(side: str, shape: Shape) -> None:
    """Prints how far a step's peak rises, after a step that made the optimizer's state."""
    with tempfile.TemporaryDirectory() as folder:
        build(shape, folder)
        samples = samples_of(shape, folder)
        made = (
            OurSide(folder) if side == "ours" else make_trl(shape, folder, batch_size=shape.batch_sizes[-1])
        )
        made.step(samples)
        mib = peak_growth_mib(lambda: made.step(samples))
    print(json.dumps({"mib": mib, "num_places": num_places(samples)}))


def peak_growth_mib(work: Callable[[], object]) -> float:
    """Linux only: the kernel's own high-water mark of resident memory, set back before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kib("VmRSS")
    work()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description="One side's peak, as a line of JSON.")
    parser.add_argument("side", choices=("ours", "trl"))
    parser.add_argument("shape")
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    named = {shape.name: shape for shape in (*SHAPES, HEAD)}
    report_memory_of(arguments.side, named[arguments.shape])


if __name__ == "__main__":
    main()
