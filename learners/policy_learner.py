"""One training rank: the policy with its optimizer, reference model and training stage (SFT or GRPO). Tables
in, metrics out.

Every method except `saved` and `credits` is collective: all ranks call it with the same arguments. No Ray.
"""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from transformers import AutoTokenizer

from actors.renderer import Renderer
from learners.batch.aggregation import select_and_weigh, shares_of, turn_weights
from learners.batch.packing import micro_batches
from learners.batch.samples import TrainingSample
from learners.config import LearnerSettings
from learners.losses.entropy import EntropyControl
from learners.model.checkpoint import CheckpointWriter, Progress, SaveReport, export_model, load_checkpoint
from learners.model.policy import Policy, load_policy, shard
from learners.model.reference import load_reference, reference_logprobs, write_reference
from learners.model.weight_export import WeightExport
from learners.model.weight_payload import WIRE_DTYPES, pack_weights
from learners.sft.batches import DemonstrationSamples, batch_indices, num_sft_steps
from learners.training.effective_advantages import EffectiveAdvantages
from learners.training.forward_scoring import ForwardScorer, TurnKey
from learners.training.optimizer_step import (
    LossFn,
    accumulate_gradients,
    apply_gradients,
    decayed,
    grpo_sums,
    make_optimizer,
    sft_sums,
    step_metrics,
    total_loss,
    warmed_up,
    with_critic,
)
from learners.training.step_batch import samples_of_step, trajectories_of
from learners.training.turn_credit_table import GroupCredits, credit_table


class PolicyLearner:
    """Policy, optimizer and training stage of one rank. Constructed once, on all ranks at the same time."""

    def __init__(self, settings: LearnerSettings):
        """Loads the policy, shards it over the ranks and makes the optimizer."""
        config = settings.learner
        self._settings = settings
        self._num_ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        """Rank among the learners."""
        self._device = torch.device("cuda" if config.num_gpus_per_learner else "cpu")
        if not config.num_gpus_per_learner:
            torch.set_num_threads(
                config.num_threads or max(1, len(os.sched_getaffinity(0)) // self._num_ranks)
            )
        policy = load_policy(
            settings.policy_folder,
            temperature=settings.temperature,
            dtype=getattr(torch, config.dtype),
            recompute_activations=config.recompute_activations,
            entropies_have_gradient=config.entropy.coefficient > 0 or config.entropy.target > 0,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            has_critic=bool(config.critic_lrs),
            seed=settings.seed,
        )
        self._policy = shard(policy, num_ranks=self._num_ranks, device=self._device)
        self._optimizer = make_optimizer(self._policy, config=config)
        needs_renderer = config.information_gain != "none"
        self._renderer = Renderer.from_folder(settings.policy_folder) if needs_renderer else None
        self._checkpoints = CheckpointWriter()
        self._reference: Policy | None = None
        self._stage = ""
        self._entropy = EntropyControl(coefficient=config.entropy.coefficient)
        self._demonstrations = DemonstrationSamples([])
        self._credits: pa.Table | None = None
        """Credits of the last step, on rank 0 only."""

    def update_groups(self, tables: Sequence[pa.Table], *, step: int) -> dict[str, float]:
        """One GRPO step on complete scored groups, one table each, the same list on every rank.

        `step` is the policy version before the update; the warm-up depends on it. Metrics are the same on
        every rank.
        """
        self._enter_stage("grpo")
        config = self._settings.learner
        samples, credit_metrics, groups = samples_of_step(
            tables, config=config, renderer=self._renderer, scorer=self._scorer(step)
        )
        num_usable = len(samples)
        samples, weights = select_and_weigh(
            samples, config=config, gym_shares=self._settings.gym_shares, seed=self._settings.seed + step
        )
        if config.entropy.target:
            coefficient = self._entropy.next_coefficient(target=config.entropy.target)
            entropy = config.entropy.model_copy(update={"coefficient": coefficient})
            config = config.model_copy(update={"entropy": entropy})
        num_loss_tokens = sum(sample.num_loss_tokens for sample in samples)
        effective = EffectiveAdvantages() if config.subtracts_kl and num_loss_tokens else None
        loss_fn = partial(
            grpo_sums,
            config=config,
            num_tokens=num_loss_tokens,
            policy_version=step,
            reference=partial(reference_logprobs, self._reference) if self._reference is not None else None,
            record=effective.record if effective else None,
        )
        lr = warmed_up(config.lr, step=step, warmup_steps=config.warmup_steps)
        metrics = self._step(
            samples, weights=weights, loss_fn=loss_fn, num_loss_tokens=num_loss_tokens, lr=lr, step=step
        )
        self._record_credits(groups, samples=samples, effective=effective, step=step)
        if config.entropy.target and "learner/entropy" in metrics:
            self._entropy = self._entropy.updated(metrics["learner/entropy"], target=config.entropy.target)
            metrics["learner/entropy_coefficient"] = config.entropy.coefficient
        if config.aggregation.type == "token_budget":
            metrics["learner/num_left_out"] = float(num_usable - len(samples))
            metrics["learner/budget_filled"] = num_loss_tokens / config.aggregation.tokens
        return metrics | credit_metrics

    def credits(self) -> pa.Table | None:
        """The `credit_table` of the last `update_groups` on rank 0, None on the others. Not collective."""
        return self._credits

    def set_demonstrations(self, tables: Sequence[pa.Table]) -> int:
        """Sets the demonstrations of the SFT stage; returns the number of their samples."""
        self._demonstrations = DemonstrationSamples(tables)
        return len(self._demonstrations)

    def sft_updates(self, *, first_step: int, num_steps: int) -> dict[str, float]:
        """SFT steps from `first_step` on, each on its own batch of demonstrations. Returns metrics of the
        last."""
        self._enter_stage("sft")
        metrics: dict[str, float] = {}
        for step in range(first_step, first_step + num_steps):
            metrics = self._sft_update(step)
        return metrics

    def weights(
        self, *, dtype: Literal["float32", "bfloat16", "auto"]
    ) -> tuple[NDArray[np.uint8], dict[str, float]] | None:
        """All weights, packed, on rank 0, None on the others. "auto" keeps the training dtype."""
        weights = self.full_weights(dtype=dtype, keep=self.rank == 0)
        if self.rank == 0:
            return pack_weights(weights.shapes(), weights)
        for _ in weights:
            pass
        return None

    def full_weights(self, *, dtype: Literal["float32", "bfloat16", "auto"], keep: bool) -> WeightExport:
        """An iterable over the policy's current weights, gathered one at a time."""
        return WeightExport(self._policy, dtype=WIRE_DTYPES[dtype], keep=keep)

    def save(self, path: str) -> None:
        """Starts a checkpoint in the folder `path`, which all learners must be able to reach; see `saved`."""
        self._checkpoints.save(
            Path(path), self._policy, self._optimizer, Progress(stage=self._stage, entropy=self._entropy)
        )

    def saved(self, *, wait: bool) -> SaveReport:
        """Progress of this rank with the last `save`. Not collective."""
        return self._checkpoints.report(wait=wait)

    def load(self, path: str) -> None:
        """Resumes from a checkpoint, written by any number of learners."""
        progress = load_checkpoint(Path(path), self._policy, self._optimizer)
        self._stage, self._entropy = progress.stage, progress.entropy
        self._load_reference(self._stage, is_new_stage=False)

    def export(self, folder: str) -> None:
        """Writes the policy with its tokenizer as a Hugging Face model folder."""
        tokenizer = AutoTokenizer.from_pretrained(self._settings.policy_folder)
        export_model(Path(folder), self._policy, tokenizer=tokenizer, is_writer=self.rank == 0)

    def _enter_stage(self, stage: str) -> None:
        """Starts a stage with new optimizer moments: those of another loss would distort its first steps."""
        if stage != self._stage:
            self._optimizer = make_optimizer(self._policy, config=self._settings.learner)
            if stage == "grpo":
                self._demonstrations = DemonstrationSamples([])  # frees the object store
            self._load_reference(stage, is_new_stage=True)
            self._stage = stage

    def _load_reference(self, stage: str, *, is_new_stage: bool) -> None:
        """Loads GRPO's reference model: the configured one, or the policy at the start of that stage."""
        settings, config = self._settings, self._settings.learner
        self._reference = None
        if stage != "grpo" or config.kl.type == "none":
            return
        ranks = {"num_ranks": self._num_ranks, "device": self._device}
        if is_new_stage and not config.reference:
            write_reference(Path(settings.reference_folder), self._policy, rank=self.rank, **ranks)
        self._reference = load_reference(settings.reference_folder, policy=self._policy, **ranks)

    def _sft_update(self, step: int) -> dict[str, float]:
        config = self._settings.sft
        indices = batch_indices(
            len(self._demonstrations), batch_size=config.batch_size, step=step, seed=self._settings.seed
        )
        samples = [self._demonstrations[index] for index in indices]
        num_loss_tokens = sum(sample.num_loss_tokens for sample in samples)
        lr = decayed(
            warmed_up(config.lr, step=step, warmup_steps=config.warmup_steps),
            step=step,
            num_steps=num_sft_steps(config, num_samples=len(self._demonstrations)),
        )
        loss_fn = partial(sft_sums, num_tokens=num_loss_tokens)
        return self._step(samples, loss_fn=loss_fn, num_loss_tokens=num_loss_tokens, lr=lr, step=step)

    def _record_credits(
        self,
        groups: Sequence[GroupCredits],
        *,
        samples: Sequence[TrainingSample],
        effective: EffectiveAdvantages | None,
        step: int,
    ) -> None:
        """Makes the table that `credits` returns."""
        loss_advantages: dict[TurnKey, float] = {}
        if effective:
            loss_advantages = effective.by_turn(
                samples,
                max_tokens=self._settings.learner.micro_batch_tokens,
                rank=self.rank,
                num_ranks=self._num_ranks,
                seed=self._settings.seed + step,
            )
        if self.rank == 0:
            self._credits = credit_table(
                groups,
                credit_of=self._settings.learner.credit_of,
                trained=trajectories_of(samples),
                loss_advantages=loss_advantages,
            )

    def _scorer(self, step: int) -> ForwardScorer:
        return ForwardScorer(
            policy=self._policy,
            device=self._device,
            max_tokens=self._settings.learner.micro_batch_tokens,
            rank=self.rank,
            num_ranks=self._num_ranks,
            seed=self._settings.seed + step,
        )

    def _step(
        self,
        samples: Sequence[TrainingSample],
        *,
        weights: NDArray[np.float64] | None = None,
        loss_fn: LossFn,
        num_loss_tokens: int,
        lr: float,
        step: int,
    ) -> dict[str, float]:
        """One optimizer step on these samples; skipped if they have no loss token."""
        if not num_loss_tokens:
            return {"learner/num_tokens": 0.0, "learner/num_loss_tokens": 0.0, "learner/num_skipped": 1.0}
        start, config = time.perf_counter(), self._settings.learner
        weights_of_turns = None
        if self._policy.critic is not None:
            weights_of_turns = turn_weights(samples, gym_shares=shares_of(config, self._settings.gym_shares))
            loss_fn = partial(with_critic, loss_fn=loss_fn)
        batches = micro_batches(
            samples,
            weights=weights,
            turn_weights=weights_of_turns,
            max_tokens=config.micro_batch_tokens,
            rank=self.rank,
            num_ranks=self._num_ranks,
            seed=self._settings.seed + step,
        )
        sums = accumulate_gradients(
            self._policy, batches, loss_fn=loss_fn, device=self._device, num_ranks=self._num_ranks
        )
        grad_norm = apply_gradients(
            self._policy, self._optimizer, lr=lr, max_grad_norm=config.max_grad_norm, loss=total_loss(sums)
        )
        return step_metrics(
            sums,
            grad_norm=grad_norm,
            lr=lr,
            num_tokens=sum(sample.num_tokens for sample in samples),
            num_loss_tokens=num_loss_tokens,
            duration_s=time.perf_counter() - start,
        )
