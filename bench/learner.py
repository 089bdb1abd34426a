"""Speed and memory of a learner's step beside TRL's GRPO: `make bench-learner`, or
`python bench/learner.py --quick`.

Prints Markdown and writes `bench/results/learner.md` and `learner.json`. Both sides train the same model on
the same dialogues with the same threads, in one process, by turns; TRL in the best of a few batch sizes.
Memory is measured in a process each.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import transformers
import trl
from dialogues import dialogues, sampled_by
from gyms import machine
from learner_sides import CONFIG, OurSide, Side, TrlSide, padded
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from learners.config import TinyPolicyConfig
from learners.samples import TrainingSample
from learners.tiny_policy import make_tokenizer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TINY = TinyPolicyConfig(
    **tomllib.loads((ROOT / "recipes" / "cpu-quickstart.toml").read_text())["policy"]["tiny"]
)
SEED = 0
GAP = 0.02
"""Between engine and learner, nats a token: ratios near 1, none of them exactly 1."""
SAME = 1e-3
"""Loss and gradient norm of both sides may differ by this, relatively: they must do the same work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model with random weights, and the step that it takes."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    num_dialogues: int
    batch_sizes: tuple[int, ...]
    """Dialogues a forward pass that TRL is tried with."""


QUICKSTART = Shape(
    name="quick-start",
    hidden_size=TINY.hidden_size,
    num_layers=TINY.num_layers,
    num_heads=TINY.num_heads,
    num_kv_heads=TINY.num_heads,
    head_dim=TINY.head_dim,
    intermediate_size=TINY.intermediate_size,
    vocab_size=TINY.vocab_size,
    num_dialogues=32,
    batch_sizes=(4, 16, 32),
)
SHAPES = (
    QUICKSTART,
    Shape(
        name="25M",
        hidden_size=384,
        num_layers=8,
        num_heads=6,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=1024,
        vocab_size=32_768,
        num_dialogues=8,
        batch_sizes=(2, 8),
    ),
)
HEAD = Shape(
    name="head alone",
    hidden_size=64,
    num_layers=0,
    num_heads=1,
    num_kv_heads=1,
    head_dim=64,
    intermediate_size=64,
    vocab_size=151_936,
    num_dialogues=8,
    batch_sizes=(8,),
)
"""No layers and Qwen3's vocabulary: what is left of a step is its logits."""


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

    @property
    def speedups(self) -> list[float]:
        """TRL's time over ours, of each pair of runs."""
        return [theirs / mine for theirs, mine in zip(self.trl_s, self.ours_s, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """By how much a step's peak stands above what is resident before it, MiB."""

    shape: str
    ours_mib: float
    trl_mib: float
    full_logits_mib: float
    """One float32 copy of the logits of every place in TRL's rows, which neither side makes."""


def build(shape: Shape, folder: str) -> int:
    """Writes the model with a tokenizer; returns the number of weights."""
    disable_progress_bar()
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder)
    make_tokenizer(vocab_size=TINY.vocab_size).save_pretrained(folder)
    return model.num_parameters()


def samples_of(shape: Shape, folder: str) -> list[TrainingSample]:
    samples = dialogues(shape.num_dialogues, vocab_size=shape.vocab_size, seed=SEED)
    return sampled_by(OurSide(folder).policy, samples, gap=GAP, seed=SEED)


def seconds(side: Side, samples: Sequence[TrainingSample]) -> float:
    gc.collect()
    began = time.perf_counter()
    side.step(samples)
    return time.perf_counter() - began


def best_trl(shape: Shape, folder: str, samples: Sequence[TrainingSample]) -> tuple[int, TrlSide]:
    """TRL at the batch size that is fastest here, each tried once after a warm-up."""
    tried: list[tuple[float, int]] = []
    for batch_size in shape.batch_sizes:
        side = make_trl(shape, folder, batch_size=batch_size)
        side.step(samples)
        tried.append((seconds(side, samples), batch_size))
    best = min(tried)[1]
    return best, make_trl(shape, folder, batch_size=best)


def make_trl(shape: Shape, folder: str, *, batch_size: int) -> TrlSide:
    return TrlSide(folder, num_samples=shape.num_dialogues, batch_size=batch_size, output_dir=folder + "/trl")


def measure(shape: Shape, *, num_runs: int) -> Speed:
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


def num_places(samples: Sequence[TrainingSample]) -> int:
    batch = padded(samples)
    return batch["prompt_ids"].numel() + batch["completion_ids"].numel()


def memory(shape: Shape) -> Memory:
    """A process for each side, so that neither finds the other's memory."""
    grown = {}
    for side in ("ours", "trl"):
        command = [sys.executable, __file__, "--memory-of", side, "--shape", shape.name]
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
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


def markdown(speeds: Sequence[Speed], memories: Sequence[Memory], *, command: str) -> str:
    rows = [
        f"| {s.shape} | {s.num_parameters / 1e6:.1f} M | {s.num_dialogues} | {s.num_tokens:,} "
        f"| {s.num_padded_tokens:,} | {s.num_tokens / median(s.ours_s):,.0f} "
        f"| {s.num_tokens / median(s.trl_s):,.0f} ({s.trl_batch_size}) | {median(s.speedups):.1f} "
        f"| {min(s.speedups):.1f}–{max(s.speedups):.1f} |"
        for s in speeds
    ]
    peaks = [
        f"| {m.shape} | {m.ours_mib:,.0f} | {m.trl_mib:,.0f} | {m.full_logits_mib:,.0f} |" for m in memories
    ]
    return "\n".join(
        [
            f"Machine: {machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"transformers {transformers.__version__}, TRL {trl.__version__}. `{command}`",
            "",
            "A step is forward, backward, clip and AdamW, float32, on dialogues of mixed lengths whose "
            "context and completions take turns. Tokens are those of the dialogues; TRL pads them to places, "
            "and without Triton its head scores every place, where ours scores what the policy said. "
            "The first step of both has the same loss and gradient norm. Medians of "
            f"{len(speeds[0].ours_s)} runs by turns.",
            "",
            "| model | weights | dialogues | tokens | TRL's places | ours, tokens/s "
            "| TRL, tokens/s (dialogues a pass) | times | range |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "How far a step's peak rises above the memory resident before it, MiB; `head alone` has no "
            f"layers and {HEAD.vocab_size:,} tokens: its step is the logits.",
            "",
            "| model | ours | TRL | its logits in full, once |",
            "|---|---|---|---|",
            *peaks,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the smallest model, twice; nothing written")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory-of", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.memory_of:
        named = {shape.name: shape for shape in (*SHAPES, HEAD)}
        return report_memory_of(flags.memory_of, named[flags.shape])
    shapes = SHAPES[:1] if flags.quick else SHAPES
    speeds = [measure(shape, num_runs=2 if flags.quick else 5) for shape in shapes]
    memories = [memory(shape) for shape in ((HEAD,) if flags.quick else (QUICKSTART, HEAD))]
    command = " ".join(["python bench/learner.py", *sys.argv[1:]])
    text = markdown(speeds, memories, command=command)
    print(text)
    if not flags.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "learner.md").write_text(text + "\n")
        data = {
            "machine": machine(),
            "command": command,
            "num_threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__}
            | {"trl": trl.__version__},
            "micro_batch_tokens": CONFIG.micro_batch_tokens,
            "speeds": [asdict(speed) for speed in speeds],
            "memories": [asdict(each) for each in memories],
        }
        (RESULTS / "learner.json").write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
