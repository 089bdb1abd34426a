"""One optimizer step: gradients summed over micro-batches and learners, clipped, and applied if finite. No
Ray."""

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from learners.batch.packing import MicroBatch
from learners.config import LearnerConfig
from learners.losses.importance import importance_weights
from learners.losses.kl import with_kl_in_advantages, with_kl_in_loss
from learners.losses.policy_loss import LossTokens, kl_k3, policy_loss, sft_loss
from learners.model.critic import critic_loss
from learners.model.policy import Policy, PolicyOutput

Sums = dict[str, Float[Tensor, ""]]
"""Named sums over tokens, which are added over micro-batches and learners."""
LossFn = Callable[[MicroBatch, PolicyOutput], Sums]
"""Returns `loss` among others; it and `critic_loss` are the only sums with a gradient."""
ReferenceFn = Callable[[MicroBatch], Float[Tensor, "L"]]
"""The reference model's logprobs of the loss tokens."""
RecordFn = Callable[[MicroBatch, Float[Tensor, "L"]], None]
"""Gets the advantages that the loss uses, micro-batch by micro-batch."""


def grpo_sums(
    batch: MicroBatch,
    policy: PolicyOutput,
    *,
    config: LearnerConfig,
    num_tokens: int,
    policy_version: int,
    reference: ReferenceFn | None = None,
    record: RecordFn | None = None,
) -> Sums:
    """The policy loss, plus the KL to the reference if there is one, minus the entropy bonus, and sums for
    the metrics. The logprob gap is over tokens that this policy version sampled."""
    tokens = LossTokens(
        policy_logprobs=policy.logprobs,
        behavior_logprobs=batch.behavior_logprobs,
        advantages=batch.advantages,
        turns=batch.turns,
        sequences=batch.sequences,
    )
    reference_logprobs = reference(batch) if reference else None
    if reference_logprobs is not None:
        tokens = with_kl_in_advantages(tokens, reference_logprobs, config.kl)
    if record is not None:
        record(batch, tokens.advantages)
    importance = importance_weights(tokens, config.importance, has_ratio=config.loss.has_ratio)
    weights = batch.weights * importance
    result = policy_loss(tokens, weights=weights, num_tokens=num_tokens, config=config.loss)
    loss = result.loss
    if reference_logprobs is not None:
        loss = with_kl_in_loss(
            loss, tokens, reference_logprobs, weights=weights, num_tokens=num_tokens, config=config.kl
        )
    if config.entropy.coefficient:
        bonus = (batch.weights.to(policy.entropies.dtype) * policy.entropies).sum() / num_tokens
        loss = loss - config.entropy.coefficient * bonus
    own = _of_one_version(batch, policy_version=policy_version)
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
    if config.importance.type != "none":
        sums |= {"importance": importance.sum(), "left_out": (importance == 0).sum()}
    if reference_logprobs is not None:
        sums["reference_kl"] = kl_k3(policy.logprobs.detach(), reference_logprobs).sum()
    return sums


def _of_one_version(batch: MicroBatch, *, policy_version: int) -> Bool[Tensor, "L"]:
    """True at tokens of completions that were sampled entirely under this version. After a weight update in
    flight an engine continues with keys and values of the old weights, so that its logprobs differ from the
    learner's although both are right."""
    is_other = batch.policy_versions != policy_version
    has_other = torch.zeros(len(batch.states), dtype=torch.bool, device=is_other.device)
    has_other[batch.turns[is_other]] = True
    return ~has_other[batch.turns]


def sft_sums(batch: MicroBatch, policy: PolicyOutput, *, num_tokens: int) -> Sums:
    """The SFT loss and the entropy, for the metrics."""
    return {"loss": sft_loss(policy.logprobs, num_tokens=num_tokens), "entropy": policy.entropies.sum()}


def with_critic(batch: MicroBatch, policy: PolicyOutput, *, loss_fn: LossFn) -> Sums:
    """The sums of `loss_fn` and the critic's loss."""
    critic = critic_loss(policy.values, batch.returns, weights=batch.turn_weights)
    return loss_fn(batch, policy) | {"critic_loss": critic}


def accumulate_gradients(
    policy: Policy, batches: Iterable[MicroBatch], *, loss_fn: LossFn, device: torch.device, num_ranks: int
) -> dict[str, float]:
    """Backward over this rank's micro-batches (at least one, the same number on each rank). Returns the sums
    over all ranks.

    FSDP averages gradients over ranks, while the loss is a sum over ranks: hence the factor.
    """
    total: dict[str, Tensor] = {}
    for batch in batches:
        batch = to_device(batch, device)
        sums = loss_fn(batch, policy(batch))
        # The critic's input is detached: its loss changes no gradient of the policy.
        loss = sums["loss"] + sums["critic_loss"] if "critic_loss" in sums else sums["loss"]
        (loss * num_ranks).backward()
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + value.detach().double()
    values = torch.stack(list(total.values()))
    if num_ranks > 1:
        dist.all_reduce(values)
    return dict(zip(total, values.tolist(), strict=True))


def apply_gradients(
    policy: Policy, optimizer: Optimizer, *, lr: float, max_grad_norm: float, loss: float
) -> float:
    """Clips gradients and takes the step. A non-finite loss or norm leaves weights and optimizer untouched.
    Returns the policy's norm, or the critic's if that is not finite.

    The critic is clipped by itself: its errors must not shorten the policy's step. The loss and the norms are
    the same on every rank, so all ranks decide the same.
    """
    norm = _clipped_norm(policy.own_parameters(), max_grad_norm)
    if policy.critic is not None:
        critic_norm = _clipped_norm(policy.critic.parameters(), max_grad_norm)
        norm = norm if math.isfinite(critic_norm) else critic_norm
    if math.isfinite(norm) and math.isfinite(loss):
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _clipped_norm(parameters: Iterable[Tensor], max_grad_norm: float) -> float:
    """Scales the gradients down to a norm of at most `max_grad_norm`; returns the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def total_loss(sums: dict[str, float]) -> float:
    """The policy's loss plus the critic's; not finite if either is not."""
    return sums["loss"] + sums.get("critic_loss", 0.0)


def step_metrics(
    sums: dict[str, float],
    *,
    grad_norm: float,
    lr: float,
    num_tokens: int,
    num_loss_tokens: int,
    duration_s: float,
) -> dict[str, float]:
    """The step's metrics, from sums over all ranks; means are over tokens in the loss."""
    metrics = {
        "learner/loss": sums["loss"],
        "learner/entropy": sums["entropy"] / num_loss_tokens,
        "learner/grad_norm": grad_norm,
        "learner/lr": lr,
        "learner/num_tokens": float(num_tokens),
        "learner/num_loss_tokens": float(num_loss_tokens),
        "learner/num_skipped": float(not (math.isfinite(grad_norm) and math.isfinite(total_loss(sums)))),
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
    if sums.get("critic_loss"):  # exactly 0 if no turn had a return, as in SFT
        metrics["learner/critic/loss"] = sums["critic_loss"]
    if "reference_kl" in sums:
        metrics["learner/reference_kl"] = sums["reference_kl"] / num_loss_tokens
    return metrics


def make_optimizer(policy: Policy, *, config: LearnerConfig) -> AdamW:
    """AdamW on the trainable weights. Norms and biases (one-dimensional) and the critic have no weight decay;
    the critic's learning rate is `critic_lr`, scaled like the policy's during warm-up."""
    parameters = [parameter for parameter in policy.own_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if policy.critic is not None:
        critic = {"params": list(policy.critic.parameters()), "lr_factor": max(config.critic_lrs) / config.lr}
        groups.append(critic | {"weight_decay": 0.0})
    return AdamW([group for group in groups if group["params"]], lr=config.lr, betas=(0.9, 0.95))


def warmed_up(lr: float, *, step: int, warmup_steps: int) -> float:
    """Learning rate with linear warm-up, then constant; above zero at step 0."""
    return lr * min(1.0, (step + 1) / (warmup_steps + 1))


def decayed(lr: float, *, step: int, num_steps: int) -> float:
    """Learning rate with linear decay to a tenth over `num_steps`."""
    return lr * (1 - 0.9 * step / num_steps)


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its tensors on `device`."""
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "lengths"}
    return replace(batch, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})
