"""Benchmark of the learner against TRL's GRPO trainer: speed and memory of one step. `make bench
ONLY=learner`.

Both sides train the same model on the same dialogues of mixed lengths with the same threads, in one
process, by turns; TRL in the best of a few batch sizes. A step is forward, backward, clip and AdamW, float32.
Tokens are those of the dialogues: TRL pads them to places, and without Triton its head scores every place,
where ours scores what the policy said. Memory is measured in a process each.
"""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.harness import RUNS, compare, run
from bench.learner_memory import Memory, memory
from bench.learner_models import HEAD, QUICKSTART, SHAPES, Shape, build, make_trl, num_places, samples_of
from bench.learner_vs_trl import OurSide, Side, TrlSide
from bench.result_rows import Row
from learners.batch.samples import TrainingSample

SAME = 1e-3
"""Loss and gradient norm of both sides may differ by this, relatively: they must do the same work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Seconds of a step, in order of the runs, and what was trained on."""

    shape: str
    num_parameters: int
    num_dialogues: int
    num_tokens: int
    num_loss_tokens: int
    num_padded_tokens: int
    """Places in TRL's rows."""
    trl_batch_size: int
    ours_s: list[float]
    trl_s: list[float]


def measure(quick: bool) -> list[Row]:
    """Tokens a second of a step, then how far its peak of memory rises."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    speeds = [speed_of(shape, num_runs=2 if quick else RUNS) for shape in (SHAPES[:1] if quick else SHAPES)]
    memories = [memory(shape) for shape in ((HEAD,) if quick else (QUICKSTART, HEAD))]
    return [row for speed in speeds for row in speed_rows(speed)] + [
        row for one in memories for row in memory_rows(one)
    ]


def speed_rows(speed: Speed) -> list[Row]:
    ours, trl = f"{speed.shape}, ours", f"{speed.shape}, TRL ({speed.trl_batch_size} dialogues a pass)"
    values = {
        ours: [speed.num_tokens / seconds for seconds in speed.ours_s],
        trl: [speed.num_tokens / seconds for seconds in speed.trl_s],
    }
    counts = {
        "weights": speed.num_parameters, "dialogues": speed.num_dialogues,
        "tokens of a step": speed.num_tokens,
        "sampled tokens of a step": speed.num_loss_tokens, "places in TRL's rows": speed.num_padded_tokens,
    }  # fmt: skip
    return compare(values, bench="learner", metric="step", unit="tokens/s", ratio_to=trl, ours=ours) + [
        Row(bench="learner", case=speed.shape, metric=metric, value=count, unit="", runs=1)
        for metric, count in counts.items()
    ]


def memory_rows(memory: Memory) -> list[Row]:
    ours, trl = f"{memory.shape}, ours", f"{memory.shape}, TRL"
    mib = {
        ours: memory.ours_mib,
        trl: memory.trl_mib,
        f"{memory.shape}, its logits, once": memory.full_logits_mib,
    }
    return [
        Row(
            bench="learner",
            case=case,
            metric="peak over what was resident",
            value=value,
            unit="MiB",
            runs=1,
            ratio_to=trl if case == ours else "",
            ratio=memory.trl_mib / memory.ours_mib if case == ours else None,
        )
        for case, value in mib.items()
    ]


def speed_of(shape: Shape, *, num_runs: int) -> Speed:
    """Both sides by turns, after a step each that must agree. Raises RuntimeError where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        num_parameters = build(shape, folder)
        samples = samples_of(shape, folder)
        batch_size, theirs = best_trl(shape, folder, samples)
        mine = OurSide(folder)
        for what, one, other in zip(("loss", "norm"), mine.step(samples), theirs.step(samples), strict=True):
            if abs(one - other) > SAME * abs(other):
                raise RuntimeError(f"{shape.name}: the sides differ: {what} {one:g} here, {other:g} in TRL")
        runs = [(seconds(mine, samples), seconds(theirs, samples)) for _ in range(num_runs)]
    return Speed(
        shape=shape.name,
        num_parameters=num_parameters,
        num_dialogues=len(samples),
        num_tokens=sum(sample.num_tokens for sample in samples),
        num_loss_tokens=sum(sample.num_loss_tokens for sample in samples),
        num_padded_tokens=num_places(samples),
        trl_batch_size=batch_size,
        ours_s=[ours for ours, _ in runs],
        trl_s=[trls for _, trls in runs],
    )


def best_trl(shape: Shape, folder: str, samples: Sequence[TrainingSample]) -> tuple[int, TrlSide]:
    """TRL at the batch size that is fastest here, each tried once after a warm-up."""
    tried: list[tuple[float, int]] = []
    for batch_size in shape.batch_sizes:
        side = make_trl(shape, folder, batch_size=batch_size)
        side.step(samples)
        tried.append((seconds(side, samples), batch_size))
    best = min(tried)[1]
    return best, make_trl(shape, folder, batch_size=best)


def seconds(side: Side, samples: Sequence[TrainingSample]) -> float:
    gc.collect()
    began = time.perf_counter()
    side.step(samples)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
