"""One optimizer step: gradients summed over micro-batches and learners, clipped, applied or refused. Knows
no Ray."""

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from learners.config import LearnerConfig
from learners.loss import LossTokens, policy_loss, sft_loss
from learners.loss_importance import importance_weights
from learners.packing import MicroBatch
from learners.policy import Policy, TokenLogprobs

Sums = dict[str, Float[Tensor, ""]]
"""Named sums over tokens; they add up over micro-batches and learners."""
LossFn = Callable[[MicroBatch, TokenLogprobs], Sums]
"""Must hold `loss`, the only entry with a gradient."""


def grpo_sums(
    batch: MicroBatch, policy: TokenLogprobs, *, config: LearnerConfig, num_tokens: int, policy_version: int
) -> Sums:
    """The policy loss, less the entropy bonus, and what is reported of it; the gap counts tokens that this
    very version sampled."""
    tokens = LossTokens(
        policy_logprobs=policy.logprobs,
        behavior_logprobs=batch.behavior_logprobs,
        advantages=batch.advantages,
        turns=batch.turns,
        sequences=batch.sequences,
    )
    importance = importance_weights(tokens, config)
    result = policy_loss(tokens, weights=batch.weights * importance, num_tokens=num_tokens, config=config)
    loss = result.loss
    if config.entropy_coefficient:
        bonus = (batch.weights.to(policy.entropies.dtype) * policy.entropies).sum() / num_tokens
        loss = loss - config.entropy_coefficient * bonus
    own = batch.policy_versions == policy_version
    gaps = (policy.logprobs.detach() - batch.behavior_logprobs).abs()
    sums = {
        "loss": loss,
        "clipped": result.num_clipped,
        "ratio": result.ratio_sum,
        "kl": result.kl_sum,
        "entropy": policy.entropies.detach().sum(),
        "gap": gaps[own].sum(),
        "own": own.sum(),
    }
    if config.importance != "none":
        sums |= {"importance": importance.sum(), "left_out": (importance == 0).sum()}
    return sums


def sft_sums(batch: MicroBatch, policy: TokenLogprobs, *, num_tokens: int) -> Sums:
    return {"loss": sft_loss(policy.logprobs, num_tokens=num_tokens), "entropy": policy.entropies.sum()}


def accumulate_gradients(
    policy: Policy, batches: Iterable[MicroBatch], *, loss_fn: LossFn, device: torch.device, num_ranks: int
) -> dict[str, float]:
    """Backward over this rank's micro-batches (at least one, equally many on each rank). Returns the sums
    over all ranks.

    FSDP averages gradients over ranks, while the loss is a sum over all of them: hence the factor.
    """
    total: dict[str, Tensor] = {}
    for batch in batches:
        batch = to_device(batch, device)
        sums = loss_fn(batch, policy(batch))
        (sums["loss"] * num_ranks).backward()
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + value.detach().double()
    values = torch.stack(list(total.values()))
    if num_ranks > 1:
        dist.all_reduce(values)
    return dict(zip(total, values.tolist(), strict=True))


def apply_gradients(
    policy: Policy, optimizer: Optimizer, *, lr: float, max_grad_norm: float, loss: float
) -> float:
    """Clips and takes the step. A non-finite loss or norm leaves weights and optimizer untouched; returns the
    norm.

    The loss and the norm are the same on every rank, so all ranks decide alike.
    """
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
    norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if math.isfinite(norm) and math.isfinite(loss):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def step_metrics(
    sums: dict[str, float],
    *,
    grad_norm: float,
    lr: float,
    num_tokens: int,
    num_loss_tokens: int,
    duration_s: float,
) -> dict[str, float]:
    """The step's report, from sums over all ranks; means are over tokens in the loss."""
    metrics = {
        "learner/loss": sums["loss"],
        "learner/entropy": sums["entropy"] / num_loss_tokens,
        "learner/grad_norm": grad_norm,
        "learner/lr": lr,
        "learner/num_tokens": float(num_tokens),
        "learner/num_loss_tokens": float(num_loss_tokens),
        "learner/num_skipped": float(not (math.isfinite(grad_norm) and math.isfinite(sums["loss"]))),
        "learner/tokens_per_s": num_tokens / duration_s,
    }
    if "ratio" in sums:
        metrics |= {
            "learner/clip_fraction": sums["clipped"] / num_loss_tokens,
            "learner/ratio": sums["ratio"] / num_loss_tokens,
            "learner/kl": sums["kl"] / num_loss_tokens,
            "learner/logprob_gap/num_tokens": sums["own"],
        }
        if sums["own"]:
            metrics["learner/logprob_gap/mean"] = sums["gap"] / sums["own"]
    if "importance" in sums:
        metrics["learner/importance/weight"] = sums["importance"] / num_loss_tokens
        metrics["learner/importance/left_out_fraction"] = sums["left_out"] / num_loss_tokens
    return metrics


def make_optimizer(policy: Policy, *, config: LearnerConfig) -> AdamW:
    """AdamW; norms and biases (one-dimensional) do not decay."""
    parameters = list(policy.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.lr, betas=(0.9, 0.95))


def warmed_up(lr: float, *, step: int, warmup_steps: int) -> float:
    """Linear warm-up, then constant; step 0 already moves."""
    return lr * min(1.0, (step + 1) / (warmup_steps + 1))


def decayed(lr: float, *, step: int, num_steps: int) -> float:
    """Linear decay over a stage of known length, down to a tenth."""
    return lr * (1 - 0.9 * step / num_steps)


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "lengths"}
    return replace(batch, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})
