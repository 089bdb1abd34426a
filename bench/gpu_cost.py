"""GPU cost of a trained trajectory in seconds, and the best split of a cluster: the arithmetic of
docs/cost-model.md."""

from dataclasses import dataclass
from math import ceil

ADAM_BYTES = 16
"""A parameter in training: weight, gradient and Adam's two moments, each float32."""
BF16_BYTES = 2
KV_SHARE = 0.9
"""Part of a GPU's memory that an engine takes, weights included."""
LEARNER_SHARE = 0.8
"""Part of a GPU's memory that a learner's parameters may take; activations want the rest."""
BUSY = 0.9
"""Part of its time that a GPU works: the idle shares that bench/asynchrony.py holds a run to."""
REPLICA_SEQS = 256
"""Most sequences that one engine samples at the same time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """An accelerator. The peaks are its maker's; the efficiencies are assumptions, to be measured."""

    flops: float = 989e12
    """Dense bfloat16."""
    memory: float = 80e9
    memory_bandwidth: float = 3.35e12
    network: float = 50e9
    """One 400 Gbit/s card a GPU."""
    decode_efficiency: float = 0.6
    """Of the memory bandwidth, while tokens are sampled."""
    prefill_efficiency: float = 0.4
    """Of the FLOPs, while prompts are read."""
    train_efficiency: float = 0.15
    """Of the FLOPs, in a training step. prime-rl publishes 14.7 % (4B, full RL, 8 H200, 16k tokens)."""


GPUS = {"H100": Gpu(), "H200": Gpu(memory=141e9, memory_bandwidth=4.8e12)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A dense transformer in bfloat16."""

    params: float
    kv_bytes: float
    """Keys and values of one token: 2 (keys, values) x 2 bytes x layers x KV heads x head size."""


MODELS = {
    "Qwen3-0.6B": Model(params=0.6e9, kv_bytes=114_688),
    "Qwen3-8B": Model(params=8.2e9, kv_bytes=147_456),
    "Qwen3-32B": Model(params=32.8e9, kv_bytes=262_144),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a step consists of."""

    turns: float = 8.0
    """Of a mean dialogue."""
    policy_tokens: float = 150.0
    """Sampled in a turn."""
    user_tokens: float = 80.0
    """Of a user's reply, as sampled and as read by the policy."""
    opening_tokens: float = 600.0
    """System message and opening."""
    user_latency: float | None = None
    """Of a user that somebody else hosts; None: the simulator of this cluster answers."""
    step_trajectories: float = 1024.0
    """That one optimizer step trains."""
    trained_share: float = 0.7
    """Of the trajectories played: the others are of groups without a signal."""

    @property
    def tokens(self) -> float:
        """Of a whole dialogue."""
        return self.opening_tokens + self.turns * (self.policy_tokens + self.user_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What one GPU does as part of an engine."""

    gpus_per_replica: int
    batch: float
    """Sequences that a replica samples at the same time."""
    token_s: float
    """From one token of a sequence to its next."""
    decode: float
    """Tokens sampled a second and GPU."""
    prefill: float
    """Prompt tokens read a second and GPU."""


def engine_speed(model: Model, *, gpu: Gpu, context: float) -> Speed:
    """An engine samples one token for each sequence of its batch by reading all weights and all keys and
    values once: token_s = (2 params + batch x context x kv_bytes) / bandwidth, unless the FLOPs are the
    limit. The batch is what memory holds, at most `REPLICA_SEQS`."""
    weights, sequence = BF16_BYTES * model.params, context * model.kv_bytes
    gpus = 1
    while gpus * gpu.memory * KV_SHARE < 1.25 * weights + sequence:  # room for a batch worth the name
        gpus *= 2
    batch = min(REPLICA_SEQS, (gpus * gpu.memory * KV_SHARE - weights) / sequence)
    reading_s = (weights + batch * sequence) / (gpus * gpu.memory_bandwidth * gpu.decode_efficiency)
    computing_s = 2 * model.params * batch / (gpus * gpu.flops * gpu.prefill_efficiency)
    token_s = max(reading_s, computing_s)
    return Speed(
        gpus_per_replica=gpus,
        batch=batch,
        token_s=token_s,
        decode=batch / token_s / gpus,
        prefill=gpu.flops * gpu.prefill_efficiency / (2 * model.params),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one *trained* trajectory takes."""

    policy_gpu_s: float
    simulator_gpu_s: float
    learner_gpu_s: float
    dialogue_s: float
    """Seconds from a dialogue's beginning to its end."""
    policy: Speed
    simulator: Speed

    @property
    def gpu_s(self) -> float:
        return self.policy_gpu_s + self.simulator_gpu_s + self.learner_gpu_s


def cost(work: Work, *, policy: Model, simulator: Model, gpu: Gpu) -> Cost:
    """Prompts hit the prefix cache: every token is read once, by the policy and by the simulator each."""
    speeds = [engine_speed(model, gpu=gpu, context=work.tokens / 2) for model in (policy, simulator)]
    ours, theirs = speeds
    sampled, replied = work.turns * work.policy_tokens, work.turns * work.user_tokens
    read_by_policy, read_by_user = work.opening_tokens + replied, work.opening_tokens + sampled
    is_hosted = work.user_latency is None
    user_s = work.user_latency
    if user_s is None:
        reading_s = read_by_user / work.turns / (theirs.prefill * theirs.gpus_per_replica)
        user_s = work.user_tokens * theirs.token_s + reading_s
    learner_s = 6 * policy.params * work.tokens / (gpu.flops * gpu.train_efficiency)
    played = 1 / work.trained_share / BUSY
    return Cost(
        policy_gpu_s=played * (sampled / ours.decode + read_by_policy / ours.prefill),
        simulator_gpu_s=is_hosted * played * (replied / theirs.decode + read_by_user / theirs.prefill),
        learner_gpu_s=learner_s / BUSY,
        dialogue_s=work.turns * (work.policy_tokens * ours.token_s + user_s),
        policy=ours,
        simulator=theirs,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run on a cluster of some size."""

    gpus: int
    rate: float
    """Trained trajectories a second."""
    step_s: float
    policy_gpus: int
    simulator_gpus: int
    learner_gpus: int
    in_flight: float
    """Dialogues, by Little's law: the rate at which they begin times how long they last."""
    off_policy_steps: int
    """`buffer.max_off_policy_steps` that keeps that many in flight: steps that pass during a dialogue."""


def plan(gpus: int, *, work: Work, per: Cost, policy: Model, gpu: Gpu) -> Plan:
    """Splits at most `gpus` for the highest rate. Raises ValueError where they are too few to hold the
    models."""
    kinds = (
        (per.policy_gpu_s, per.policy.gpus_per_replica, per.policy.gpus_per_replica),
        (per.simulator_gpu_s, per.simulator.gpus_per_replica, bool(per.simulator_gpu_s)),
        (per.learner_gpu_s, 1, ceil(ADAM_BYTES * policy.params / (LEARNER_SHARE * gpu.memory))),
    )

    def counts_at(rate: float) -> list[int]:
        """Whole replicas, and never fewer GPUs than hold the model."""
        return [
            max(unit * ceil(rate * want / unit), unit * ceil(least / unit)) for want, unit, least in kinds
        ]

    if gpus < sum(counts_at(0.0)):
        raise ValueError(f"gpus={gpus}: the models alone need {sum(counts_at(0.0))}: give at least that many")
    rate, too_much = 0.0, gpus / per.gpu_s
    for _ in range(60):  # bisection: the count of GPUs grows with the rate, by steps
        middle = (rate + too_much) / 2
        rate, too_much = (middle, too_much) if sum(counts_at(middle)) <= gpus else (rate, middle)
    counts = counts_at(rate)
    in_flight = rate / work.trained_share * per.dialogue_s
    return Plan(
        gpus=sum(counts),
        rate=rate,
        step_s=work.step_trajectories / rate,
        policy_gpus=counts[0],
        simulator_gpus=counts[1],
        learner_gpus=counts[2],
        in_flight=in_flight,
        off_policy_steps=ceil(in_flight / work.step_trajectories),
    )
