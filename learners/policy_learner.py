"""One training rank: the policy with its optimizer, reference model and training stage (SFT or GRPO). Tables
in, metrics out.

Every method but `saved` and `credits` is collective: all ranks call it alike, with the same arguments. Knows
no Ray.
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
from learners.model.weight_payload import WIRE_DTYPES, pack
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
    """The learning of one rank. Made once, on every rank of the process group at the same time."""

    def __init__(self, settings: LearnerSettings):
        """Loads the policy, shards it over the ranks, makes the optimizer."""
        config = settings.learner
        self._settings = settings
        self._num_ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        """Among the learners."""
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
        self._renderer = (
            None if config.information_gain == "none" else Renderer.from_folder(settings.policy_folder)
        )
        self._checkpoints = CheckpointWriter()
        self._reference: Policy | None = None
        self._stage = ""
        self._entropy = EntropyControl(coefficient=config.entropy.coefficient)
        self._demonstrations = DemonstrationSamples([])
        self._credits: pa.Table | None = None
        """Of the last step; rank 0 alone has any."""

    def update_groups(self, tables: Sequence[pa.Table], *, step: int) -> dict[str, float]:
        """One GRPO step on whole scored groups, a table each, the same list on every rank.

        `step` is the policy version before the update, and decides the warm-up. Metrics are the same on every
        rank.
        """
        self._enter_stage("grpo")
        config = self._settings.learner
        samples, credit_metrics, groups = samples_of_step(
            tables, config=config, renderer=self._renderer, scorer=self._scorer(step)
        )
        num_usable = len(samples)
        samples, weights = select_and_weigh(
            samples,
            config=config,
            gym_shares=self._settings.gym_shares,
            seed=self._settings.seed + step,
        )
        if config.entropy.target:
            coefficient = self._entropy.next_coefficient(target=config.entropy.target)
            entropy = config.entropy.model_copy(update={"coefficient": coefficient})
            config = config.model_copy(update={"entropy": entropy})
        num_loss_tokens = sum(sample.num_loss_tokens for sample in samples)
        taken = EffectiveAdvantages() if config.subtracts_kl and num_loss_tokens else None
        loss_fn = partial(
            grpo_sums,
            config=config,
            num_tokens=num_loss_tokens,
            policy_version=step,
            reference=partial(reference_logprobs, self._reference) if self._reference is not None else None,
            note=taken.note if taken else None,
        )
        lr = warmed_up(config.lr, step=step, warmup_steps=config.warmup_steps)
        metrics = self._step(
            samples, weights=weights, loss_fn=loss_fn, num_loss_tokens=num_loss_tokens, lr=lr, step=step
        )
        self._note_credits(groups, samples=samples, taken=taken, step=step)
        if config.entropy.target and "learner/entropy" in metrics:
            self._entropy = self._entropy.updated(metrics["learner/entropy"], target=config.entropy.target)
            metrics["learner/entropy_coefficient"] = config.entropy.coefficient
        if config.aggregation.type == "token_budget":
            metrics["learner/num_left_out"] = float(num_usable - len(samples))
            metrics["learner/budget_filled"] = num_loss_tokens / config.aggregation.tokens
        return metrics | credit_metrics

    def credits(self) -> pa.Table | None:
        """The `credit_table` of the last `update_groups`; None on all ranks but the first. Not collective."""
        return self._credits

    def set_demonstrations(self, tables: Sequence[pa.Table]) -> int:
        """Keeps the SFT stage's demonstrations; returns how many samples they give."""
        self._demonstrations = DemonstrationSamples(tables)
        return len(self._demonstrations)

    def sft_updates(self, *, first_step: int, num_steps: int) -> dict[str, float]:
        """SFT steps from `first_step` on, each on its own batch of demonstrations; the last one's metrics."""
        self._enter_stage("sft")
        metrics: dict[str, float] = {}
        for step in range(first_step, first_step + num_steps):
            metrics = self._sft_update(step)
        return metrics

    def weights(
        self, *, dtype: Literal["float32", "bfloat16", "auto"]
    ) -> tuple[NDArray[np.uint8], dict[str, float]] | None:
        """The whole policy packed on rank 0, None on the others; "auto": as wide as it trains."""
        weights = self.full_weights(dtype=dtype, keep=self.rank == 0)
        if self.rank == 0:
            return pack(weights.shapes(), weights)
        for _ in weights:
            pass
        return None

    def full_weights(self, *, dtype: Literal["float32", "bfloat16", "auto"], keep: bool) -> WeightExport:
        """The policy's weights to go through, one at a time, again after each step."""
        return WeightExport(self._policy, dtype=WIRE_DTYPES[dtype], keep=keep)

    def save(self, path: str) -> None:
        """Begins a checkpoint in the folder `path`, which all learners must be able to reach; `saved` says
        when it is whole."""
        self._checkpoints.save(
            Path(path), self._policy, self._optimizer, Progress(stage=self._stage, entropy=self._entropy)
        )

    def saved(self, *, wait: bool) -> SaveReport:
        """How far this rank is with the last `save`. Not collective."""
        return self._checkpoints.report(wait=wait)

    def load(self, path: str) -> None:
        """Goes on from a checkpoint, whatever number of learners wrote it."""
        progress = load_checkpoint(Path(path), self._policy, self._optimizer)
        self._stage, self._entropy = progress.stage, progress.entropy
        self._take_reference(self._stage, begins=False)

    def export(self, folder: str) -> None:
        """Writes the policy with its tokenizer as a Hugging Face folder."""
        tokenizer = AutoTokenizer.from_pretrained(self._settings.policy_folder)
        export_model(Path(folder), self._policy, tokenizer=tokenizer, is_writer=self.rank == 0)

    def _enter_stage(self, stage: str) -> None:
        """Begins a stage with fresh optimizer moments: those of another loss would steer its first steps."""
        if stage != self._stage:
            self._optimizer = make_optimizer(self._policy, config=self._settings.learner)
            if stage == "grpo":
                self._demonstrations = DemonstrationSamples([])  # frees their tables in the object store
            self._take_reference(stage, begins=True)
            self._stage = stage

    def _take_reference(self, stage: str, *, begins: bool) -> None:
        """GRPO's KL is measured from the policy as that stage `begins`, or from the model that was named."""
        settings, config = self._settings, self._settings.learner
        self._reference = None
        if stage != "grpo" or config.kl.type == "none":
            return
        ranks = {"num_ranks": self._num_ranks, "device": self._device}
        if begins and not config.reference:
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

    def _note_credits(
        self,
        groups: Sequence[GroupCredits],
        *,
        samples: Sequence[TrainingSample],
        taken: EffectiveAdvantages | None,
        step: int,
    ) -> None:
        """After the step on these samples, for `credits`."""
        in_loss: dict[TurnKey, float] = {}
        if taken:
            in_loss = taken.by_turn(
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
                learned=trajectories_of(samples),
                in_loss=in_loss,
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
        """One optimizer step on these samples; a step without a token to learn from is skipped."""
        if not num_loss_tokens:
            return {"learner/num_tokens": 0.0, "learner/num_loss_tokens": 0.0, "learner/num_skipped": 1.0}
        start, config = time.perf_counter(), self._settings.learner
        of_turns = None
        if self._policy.critic is not None:
            of_turns = turn_weights(samples, gym_shares=shares_of(config, self._settings.gym_shares))
            loss_fn = partial(with_critic, loss_fn=loss_fn)
        batches = micro_batches(
            samples,
            weights=weights,
            turn_weights=of_turns,
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
