"""Cost model on the command line: the GPUs that a run needs, and what saturates first. `python -m
bench.cost_model --gpus 16,64,512,4096`.

Arithmetic only: the formulas of docs/cost-model.md, with their symbols. Sizes are bytes, times seconds, rates
per second; what this project measures is read from bench/results/latest.json where it is there.
"""

import argparse
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from bench.gpu_cost import BF16_BYTES, BUSY, GPUS, MODELS, Gpu, Model, Plan, Work, cost, plan

LATEST = Path(__file__).resolve().parent / "results" / "latest.json"
FSDP_BYTES = 8
"""A parameter on its way in a step: gathered twice in bfloat16, its gradient reduced in float32."""
NUM_TURNS = 5
"""Of the dialogues in bench/scaling.py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Seconds of one CPU core, on the machine that bench/RESULTS.md names."""

    turn_s: float = 500e-6
    """A rollout actor's, for a turn, its user's and environment's rules included."""
    driver_s: float = 200e-6
    """The driver's, for a trained trajectory."""
    buffer_s: float = 800e-6
    """The buffer actor's, for a trajectory that is put."""
    proxy_s: float = 1.5e-3
    """A Serve proxy's, for a call of a hosted model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The rate at which one of a kind is full."""

    what: str
    rate: float
    """Trained trajectories a second."""
    answer: str


def limits(work: Work, *, policy: Model, gpu: Gpu, measured: Measured) -> list[Limit]:
    """What there is one of, the first to saturate first. Learners are as many as compute for a step as long
    as they exchange weights and gradients for it, which takes equally long on any number of ranks."""
    played = 1 / work.trained_share
    learner_s = 6 * policy.params * work.tokens / (gpu.flops * gpu.train_efficiency)
    exchange_s = FSDP_BYTES * policy.params / gpu.network
    ranks = work.step_trajectories * learner_s / exchange_s
    sync_s = BF16_BYTES * policy.params / gpu.network
    found = [
        Limit(
            what="rollout actor, one core",
            rate=1 / (played * work.turns * measured.turn_s),
            answer="more actors: they share nothing but the feed",
        ),
        Limit(
            what="Serve proxy, one core",
            rate=1 / (played * work.turns * measured.proxy_s),
            answer="a proxy on every node: its rollout actors ask their own",
        ),
        Limit(
            what="buffer actor",
            rate=1 / (played * measured.buffer_s),
            answer="several buffers, each with its part of the slots and of a step's groups; ledgers add up",
        ),
        Limit(
            what="driver",
            rate=1 / measured.driver_s,
            answer="larger steps: what it does is done once a step and group, never once a token",
        ),
        Limit(
            what="weights, one copy a step",
            rate=work.step_trajectories / sync_s,
            answer="broadcast by NCCL along a tree or ring, sharded as the learners are; larger steps",
        ),
        Limit(
            what=f"learners, {ranks:,.0f} ranks",
            rate=ranks * BUSY / learner_s,
            answer="larger steps, or shards inside a node and copies between nodes (HSDP)",
        ),
    ]
    return sorted(found, key=lambda limit: limit.rate)


def read_measured(path: Path = LATEST) -> Measured:
    """What `make bench ONLY=scaling` left; the defaults where it has not run."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    found = {row["metric"]: row["value"] for row in rows if row["bench"] == "scaling"}
    sources = {
        "turn_s": ("rollout actors' CPU per trajectory", NUM_TURNS),
        "driver_s": ("driver CPU per trajectory", 1),
        "buffer_s": ("buffer CPU per trajectory", 1),
    }
    known = {  # rows are in ms
        field: found[name] / 1000 / parts for field, (name, parts) in sources.items() if name in found
    }
    return replace(Measured(), **known)


def _table(plans: list[Plan]) -> str:
    heads = ["GPUs", "policy", "simulator", "learner", "trajectories/s", "step, s", "in flight", "off-policy"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    lines += [
        f"| {p.gpus:,} | {p.policy_gpus:,} | {p.simulator_gpus:,} | {p.learner_gpus:,} | {p.rate:,.1f} | "
        f"{p.step_s:,.1f} | {p.in_flight:,.0f} | {p.off_policy_steps} |"
        for p in plans
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", choices=MODELS, default="Qwen3-8B")
    parser.add_argument("--simulator", choices=MODELS, default="Qwen3-32B")
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    parser.add_argument("--gpus", default="16,64,512,4096", help="cluster sizes, joined by commas")
    for field in fields(Work):
        name = field.name.replace("_", "-")
        parser.add_argument(f"--{name}", type=float, default=field.default)
    given = vars(parser.parse_args())
    work = Work(**{field.name: given[field.name] for field in fields(Work)})
    policy, gpu, measured = MODELS[given["policy"]], GPUS[given["gpu"]], read_measured()
    per = cost(work, policy=policy, simulator=MODELS[given["simulator"]], gpu=gpu)
    print(
        f"A trained trajectory: {work.tokens:,.0f} tokens, {per.policy_gpu_s:.2f} GPU-s of policy engines, "
        f"{per.simulator_gpu_s:.2f} of simulators, {per.learner_gpu_s:.2f} of learners; a dialogue lasts "
        f"{per.dialogue_s:.0f} s.\n"
    )
    sizes = [int(size) for size in given["gpus"].split(",")]
    print(_table([plan(size, work=work, per=per, policy=policy, gpu=gpu) for size in sizes]))
    print("\n| one of these | is full at, trajectories/s | answer |\n|---|---:|---|")
    for limit in limits(work, policy=policy, gpu=gpu, measured=measured):
        print(f"| {limit.what} | {limit.rate:,.0f} | {limit.answer} |")


if __name__ == "__main__":
    main()
